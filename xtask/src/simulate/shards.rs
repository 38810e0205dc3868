//! Rules for pages that are divided into shards. The simulator must notice when one of them is broken.

use super::{Mutant, mutant};

pub(super) const MUTANTS: &[Mutant] = &[
    mutant(
        "adopt a page when its first shard has landed",
        "actors/src/transfer/state/session.rs",
        "        if flush.left > 0 {\n            return false;\n        }\n",
        "",
    ),
    mutant(
        "release a page when its first piece is put",
        "actors/src/transfer/state/session.rs",
        "        self.left == 0\n",
        "        self.left == 0 || self.left < self.tickets.count\n",
    ),
    mutant(
        "hash only the first shard of a page",
        "connector/src/page_hash.rs",
        "contents.into_iter().fold(0, u64::wrapping_add)",
        "contents.into_iter().take(1).fold(0, u64::wrapping_add)",
    ),
    mutant(
        "put each piece of a page at the start of its shard",
        "connector/src/shards.rs",
        "u64::from(lane % pieces)",
        "u64::from(lane % pieces / SHARDS_MAX)",
    ),
];
