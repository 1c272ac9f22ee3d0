//! The name of an image.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// `NAME:TAG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    name: String,
    tag: String,
}

impl Reference {
    /// The name that the manifests use until somebody puts their own registry's there.
    pub(super) fn of_this_release() -> Self {
        Self {
            name: "localhost/millrace".into(),
            tag: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, tag) = text
            .rsplit_once(':')
            .with_context(|| format!("`{text}` has no tag; write NAME:TAG"))?;
        let name_is_good = !name.is_empty() && name.chars().all(|c| "._-/:".contains(c) || is_plain(c));
        let tag_is_good = !tag.is_empty()
            && tag.len() <= 128
            && tag
                .chars()
                .all(|c| "._-".contains(c) || is_plain(c) || c.is_ascii_uppercase());
        if !name_is_good || !tag_is_good {
            bail!("`{text}` is no image's name; write it like registry.example.com/net/millrace:0.1.0");
        }
        // Without a host, runtimes take Docker's registry for meant, and each spells that in its own way.
        if !name.contains('/') {
            bail!("`{name}` names no registry; write it like registry.example.com/net/{name}:{tag}");
        }
        Ok(Self {
            name: name.into(),
            tag: tag.into(),
        })
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_registry_and_a_tag() {
        let good = "registry.example:5000/net/millrace:v1.2_x";
        assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        for (bad, why) in [
            ("a/millrace", "tag"),
            ("millrace:1", "registry"),
            ("a/b c:1", "no image"),
            ("a/b:", "no image"),
            ("a/B:1", "no image"),
        ] {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
