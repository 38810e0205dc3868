//! The model and the KV pages of a process, and whether a peer's fit.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Incompatible, PAGE_SIZE, peer_text};
use crate::shards::{Lanes, check_division};
use crate::transport::Descriptor;
use crate::wire;

/// The model and the layout of its KV pages. Two processes exchange pages only if everything but the model's name and the number of shards is
/// equal, and if the [lanes](crate::shards::Lanes) between their shards exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvShape {
    /// The model's name, for error messages only.
    #[serde(deserialize_with = "wire::text")]
    pub model: String,
    /// SHA-256 of the model's weights.
    pub fingerprint: [u8; 32],
    /// Number of layers.
    pub layers: u32,
    /// Number of KV heads.
    pub kv_heads: u32,
    /// Elements in one head.
    pub head_dim: u32,
    /// Tokens in one page.
    pub page_tokens: u32,
    /// Element type of the KV cache, for example `f32` or `fp8`.
    #[serde(deserialize_with = "wire::text")]
    pub dtype: String,
    /// Decimal factor from a stored element to its number, for example `1`.
    #[serde(deserialize_with = "wire::text")]
    pub scale: String,
    /// Bytes in one page.
    pub page_bytes: u64,
    /// Whether the sender hashes pages and the receiver checks the hashes.
    pub page_hash: bool,
    /// Number of shards into which the process divides a page. It may differ from the peer's.
    pub shards: u32,
}

impl KvShape {
    fn named(&self) -> String {
        let [a, b, c, d, ..] = self.fingerprint;
        format!("{} (sha256 {a:02x}{b:02x}{c:02x}{d:02x}…)", peer_text(&self.model))
    }

    /// Checks that a peer with the shape `theirs` can exchange pages with us.
    ///
    /// # Errors
    /// [`Incompatible::Model`] or [`Incompatible::Page`], for the first property that differs; [`Incompatible::Shards`].
    pub fn accepts(&self, theirs: &KvShape) -> Result<(), Incompatible> {
        if self.fingerprint != theirs.fingerprint {
            return Err(Incompatible::Model { ours: self.named(), theirs: theirs.named() });
        }
        let page = |field, key, ours: &dyn fmt::Display, theirs: &dyn fmt::Display| {
            let (ours, theirs) = (ours.to_string(), peer_text(&theirs.to_string()));
            if ours == theirs { Ok(()) } else { Err(Incompatible::Page { field, key, ours, theirs }) }
        };
        // The default page length depends on the element type, so the type comes first.
        let of_type = "engine.kv_dtype and the same engine.device";
        page("KV element type", of_type, &self.dtype, &theirs.dtype)?;
        page("KV scale", "build of Baton", &self.scale, &theirs.scale)?;
        page("page length in tokens", "engine.page_tokens", &self.page_tokens, &theirs.page_tokens)?;
        page("number of layers", "--model", &self.layers, &theirs.layers)?;
        page("number of KV heads", "--model", &self.kv_heads, &theirs.kv_heads)?;
        page("head size", "--model", &self.head_dim, &theirs.head_dim)?;
        for shards in [self.shards, theirs.shards] {
            check_division(self.page_bytes, self.kv_heads, shards)?;
        }
        Lanes::between(self.shards, theirs.shards)?;
        page(PAGE_SIZE, "engine.page_tokens", &self.page_bytes, &theirs.page_bytes)?;
        page("use of page hashes", "transport.page_hash", &self.page_hash, &theirs.page_hash)
    }

    /// Checks the listener's regions: one for each shard, all of one size.
    ///
    /// # Errors
    /// [`Incompatible::Regions`] or [`Incompatible::RegionSizes`].
    pub fn has_regions(&self, descriptor: &Descriptor) -> Result<(), Incompatible> {
        let (regions, shards) = (descriptor.shards.len(), self.shards);
        if regions != shards as usize {
            return Err(Incompatible::Regions { regions, shards });
        }
        let differ = descriptor.shards.windows(2).any(|pair| pair[0].bytes != pair[1].bytes);
        if differ { Err(Incompatible::RegionSizes) } else { Ok(()) }
    }
}
