//! Keys of earlier builds that have another name now. Such a key is an error that names the current one.

/// Former keys, and the keys that have taken their place. A section or its key may have changed.
const RENAMED: &[(&str, &str)] =
    &[("ring.device", "engine.device"), ("transport.min_gbps", "transport.min_gigabytes_per_second")];

/// The key that has taken the place of `former`.
pub(super) fn current(former: &str) -> Option<&'static str> {
    RENAMED.iter().find(|(name, _)| *name == former).map(|(_, current)| *current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn former_names_lead_to_keys_and_are_not_keys() {
        for (former, current) in RENAMED {
            assert!(keys().any(|key| key.name == *current), "{current} is not a key");
            assert!(keys().all(|key| key.name != *former), "{former} is a key");
        }
    }
}
