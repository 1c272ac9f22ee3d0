//! The versions of the CNI specification that are served.

use crate::{CniError, code};
use std::fmt;

/// A version of the specification, ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl SpecVersion {
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];
    pub const NEWEST: Self = Self::V1_1_0;

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version that a configuration declares; one that declares none means 0.1.0, as runtimes have it.
    pub fn of_config(declared: Option<&str>) -> Result<Self, CniError> {
        let declared = declared.unwrap_or("0.1.0");
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == declared)
            .ok_or_else(|| {
                let served = Self::ALL.map(Self::as_str).join(", ");
                CniError::new(
                    code::INCOMPATIBLE_VERSION,
                    format!("cniVersion \"{declared}\" is not supported"),
                )
                .with_details(format!(
                    "set cniVersion in the network configuration to one of {served}"
                ))
            })
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_and_the_unknown_are_refused_with_the_list_of_what_is_served() {
        for declared in [
            None,
            Some("0.1.0"),
            Some("0.2.0"),
            Some("0.3"),
            Some("1.2.0"),
            Some(""),
        ] {
            let error = SpecVersion::of_config(declared).unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{declared:?}");
            assert!(error.details.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"));
        }
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::of_config(Some(version.as_str())).unwrap(), version);
        }
    }
}
