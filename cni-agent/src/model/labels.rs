use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Labels of an object, in one piece of memory: a large cluster has a hundred thousand of them, and pods of one Deployment
/// have the same.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(Arc<str>);

/// Ends each key and each value. No label that an API server lets through has it.
const END: char = '\0';

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value)
    }

    /// In the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut words = self.0.split_terminator(END);
        std::iter::from_fn(move || words.next().zip(words.next()))
    }

    /// One copy for all who have the same.
    pub(crate) fn text(&mut self) -> &mut Arc<str> {
        &mut self.0
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        let mut text = String::new();
        for (key, value) in labels {
            if !key.contains(END) && !value.contains(END) {
                text.extend([&key, "\0", &value, "\0"]);
            }
        }
        Self(text.into())
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        let owned = labels
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        owned.collect()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(labels: T) -> Self {
        labels.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_as_they_were_given() {
        let given: BTreeMap<String, String> = [("b", "2"), ("a", ""), ("", "x")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let labels = Labels::from(given.clone());
        assert_eq!(BTreeMap::from(labels.clone()), given);
        assert_eq!((labels.get("b"), labels.get("a")), (Some("2"), Some("")));
        assert_eq!(labels.get("c"), None);
        assert_eq!(Labels::from(BTreeMap::new()), Labels::default());
        assert_eq!(Labels::default().iter().count(), 0);
        assert_eq!(format!("{labels:?}"), r#"{"": "x", "a": "", "b": "2"}"#);
    }

    #[test]
    fn what_no_server_lets_through_spoils_no_other() {
        let given = [("a\0b", "1"), ("c", "\0"), ("d", "2")];
        let labels: Labels = given
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("d", "2")]);
    }
}
