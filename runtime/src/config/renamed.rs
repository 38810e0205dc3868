//! Keys that have had other names.

/// Former names of keys, and today's.
const RENAMED: &[(&str, &str)] = &[("transport.min_gbps", "transport.min_gigabytes_per_second")];

/// Today's name of the key that was called `name`.
pub(super) fn todays_name(name: &str) -> Option<&'static str> {
    RENAMED.iter().find(|(former, _)| *former == name).map(|(_, today)| *today)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn former_names_lead_to_keys_and_are_none() {
        for (former, today) in RENAMED {
            assert!(keys().any(|key| key.name == *today), "{today} is no key");
            assert!(keys().all(|key| key.name != *former), "{former} is a key");
        }
    }
}
