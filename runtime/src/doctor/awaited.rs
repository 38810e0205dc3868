//! A fact that one thread finds out and several checks wait for.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A value that is set once. Readers wait for it, but not for ever.
pub(super) struct Awaited<T> {
    value: Mutex<Option<T>>,
    is_set: Condvar,
}

impl<T: Clone> Awaited<T> {
    /// Without a value.
    pub(super) fn new() -> Self {
        Self { value: Mutex::new(None), is_set: Condvar::new() }
    }

    /// Sets the value and wakes all readers.
    pub(super) fn set(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.is_set.notify_all();
    }

    /// The value; `None` if it is not set within `limit`.
    pub(super) fn within(&self, limit: Duration) -> Option<T> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.is_set.wait_timeout_while(value, limit, |value| value.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_get_the_value_or_give_up() {
        let awaited = Awaited::new();
        assert_eq!(awaited.within(Duration::from_millis(1)), None);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| awaited.within(Duration::from_secs(60)));
            awaited.set(5);
            assert_eq!(reader.join().unwrap(), Some(5));
        });
        assert_eq!(awaited.within(Duration::ZERO), Some(5));
    }
}
