//! Keys that have been renamed.

/// Former and current names of keys.
const RENAMED: &[(&str, &str)] = &[("transport.min_gbps", "transport.min_gigabytes_per_second")];

/// The current name of the key that was called `name`.
pub(super) fn todays_name(name: &str) -> Option<&'static str> {
    RENAMED.iter().find(|(former, _)| *former == name).map(|(_, today)| *today)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn former_names_lead_to_keys_and_are_not_keys() {
        for (former, today) in RENAMED {
            assert!(keys().any(|key| key.name == *today), "{today} is not a key");
            assert!(keys().all(|key| key.name != *former), "{former} is a key");
        }
    }
}
