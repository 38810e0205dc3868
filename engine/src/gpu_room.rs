//! The device memory that remains for KV pages.

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuRoom {
    /// Bytes that no process uses.
    pub free_bytes: u64,
    /// All of its bytes.
    pub total_bytes: u64,
}

impl GpuRoom {
    /// Bytes for KV pages if `kv_bytes` sets none: what remains of `share` of the device, after what is used and what this process will use for `others`.
    #[must_use]
    pub fn left_of_share(self, share: f32, others: u64) -> u64 {
        let share = (self.total_bytes as f64 * f64::from(share)) as u64;
        share.saturating_sub(self.total_bytes.saturating_sub(self.free_bytes).saturating_add(others))
    }

    /// The bytes that KV pages take, and the bytes that they may take at most. `kv_bytes` is `engine.kv_bytes`, which counts against all free memory and not
    /// against the share; 0 takes all that remains of the share.
    #[must_use]
    pub fn kv_room(self, kv_bytes: u64, share: f32, others: u64) -> (u64, u64) {
        if kv_bytes > 0 {
            return (kv_bytes, self.free_bytes.saturating_sub(others));
        }
        let left = self.left_of_share(share, others);
        (left, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_pages_count_against_free_memory_and_others_against_the_share() {
        let memory = GpuRoom { free_bytes: 80, total_bytes: 100 };
        assert_eq!(memory.kv_room(0, 0.5, 10), (20, 20), "50 of the share, 20 used, 10 for others");
        assert_eq!(memory.kv_room(0, 0.25, 10), (0, 0));
        assert_eq!(memory.kv_room(60, 0.5, 10), (60, 70), "the share does not matter");
        assert_eq!(memory.kv_room(60, 0.5, 90), (60, 0));
    }
}
