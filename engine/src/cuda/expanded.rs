//! The bf16 copy of the FP8 keys and values that a step's prompts read. FlashAttention 3 multiplies numbers of one type, and queries are bf16.
//!
//! Each layer of a step uses the memory anew. Page `n` of a group of prompts becomes page `n` here.

use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, CudaDevice, Result};
use super::kernels::{baton_expand_kv, launch};
use super::lists::Uploaded;
use crate::gpu::arguments::ExpandKv;
use crate::gpu::plan::PromptGroup;
use crate::kv::{KvLayout, KvPool, KvStrides};

/// Memory for the keys and values of some pages in one layer.
pub(super) struct ExpandedKv {
    /// `[page][kv_head][K,V][page_token][head_dim]`, bf16.
    numbers: Buffer,
    /// 0, 1, 2, …: the page list of the copy.
    list: Buffer,
    /// The most pages.
    pages: usize,
    layout: KvLayout,
}

impl ExpandedKv {
    /// Allocates memory for `pages` pages of `layout`.
    pub(super) fn new(device: &Arc<CudaDevice>, layout: &KvLayout, pages: u32) -> Result<Self> {
        let bytes = u64::from(pages) * layout.layer_numbers() * size_of::<bf16>() as u64;
        let list: Vec<i32> = (0..pages.cast_signed()).collect();
        Ok(Self {
            numbers: Buffer::new(device, bytes as usize)?,
            list: Buffer::of(device, &list)?,
            pages: pages as usize,
            layout: layout.clone(),
        })
    }

    /// The most pages of a group.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// The distances in the copy.
    pub(super) fn strides(&self) -> KvStrides {
        let numbers = self.layout.layer_numbers() as i64;
        KvStrides { page: numbers, head: numbers / i64::from(self.layout.kv_heads) }
    }

    /// The addresses of the keys and of the values of KV head 0 in page 0.
    pub(super) fn addresses(&self) -> [*mut bf16; 2] {
        let keys = self.layout.page_tokens as usize * self.layout.head_dim as usize;
        [self.numbers.numbers(0, keys), self.numbers.numbers(keys, keys)]
    }

    /// The page list of a group: entry `pages.start` of the step's list is page 0.
    pub(super) fn list(&self, group: &PromptGroup) -> *mut i32 {
        self.list.numbers::<i32>(0, group.pages.len()).wrapping_sub(group.pages.start)
    }

    /// Copies the keys and values of a group's pages, in stream order. `layer_offset` is the offset of the layer's keys of KV head 0 in a page of the
    /// pool, in bytes.
    ///
    /// # Panics
    /// If the group has more pages than the copy.
    pub(super) fn fill(
        &self,
        pool: &KvPool,
        layer_offset: usize,
        group: &PromptGroup,
        step: &Uploaded<'_>,
    ) -> Result<()> {
        let count = group.pages.len();
        let all = step.plan().pages(&step.plan().prefill);
        let strides = pool.layout().strides();
        let arguments = ExpandKv {
            pool: pool.base().as_ptr().cast_const().cast(),
            kv_pages: step.list(all.start + group.pages.start..all.start + group.pages.end),
            out: self.numbers.numbers(0, count * self.layout.layer_numbers() as usize),
            page_stride: strides.page,
            head_stride: strides.head,
            layer_offset: layer_offset as i64,
            pages: count as i32,
            kv_heads: self.layout.kv_heads.cast_signed(),
            page_tokens: self.layout.page_tokens.cast_signed(),
            head_dim: self.layout.head_dim.cast_signed(),
        };
        // SAFETY: the pages are in the pool, by the contract of `Lists::lay_out`, and the sizes are those of its layout. The length of the output is
        // checked above.
        unsafe { launch("baton_expand_kv", baton_expand_kv, &arguments, step.stream) }
    }
}
