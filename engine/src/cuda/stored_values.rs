//! See [`CudaEngine::stored_values`](super::CudaEngine::stored_values).

use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, CudaDevice, Result, Stream};
use super::kernels::{baton_expand_kv, baton_rope_append, launch};
use crate::gpu::arguments::{ExpandKv, RopeAppend};

/// Numbers of a row: the values of one KV head.
const HEAD: usize = 64;

/// Writes the numbers as values of one FP8 page and copies the page to bf16, with the kernels of a step.
pub(super) fn stored(
    device: &Arc<CudaDevice>,
    stream: &Stream,
    numbers: &[f32],
) -> Result<(Vec<u8>, Vec<f32>)> {
    let rows = numbers.len() / HEAD;
    let page_numbers = 2 * rows * HEAD;
    // The keys of each row are zero.
    let products: Vec<f32> = numbers
        .chunks_exact(HEAD)
        .flat_map(|values| [0.0; HEAD].into_iter().chain(values.iter().copied()))
        .collect();
    let indices: Vec<i64> = (0..rows as i64).collect();
    let [products, bias] = [Buffer::of(device, &products)?, Buffer::of(device, &[bf16::ZERO; 2 * HEAD])?];
    let (indices, positions) = (Buffer::of(device, &indices)?, Buffer::of(device, &vec![0i32; rows])?);
    let (frequencies, list) = (Buffer::of(device, &[0f32; HEAD / 2])?, Buffer::of(device, &[0i32])?);
    let (page, expanded) =
        (Buffer::zeroed(device, page_numbers)?, Buffer::zeroed(device, page_numbers * size_of::<bf16>())?);
    let strides = page_numbers as i64;
    let append = RopeAppend {
        qkv: products.numbers::<f32>(0, page_numbers).cast_const().cast(),
        bias: bias.numbers(0, 2 * HEAD),
        head_norms: std::ptr::null(),
        q_out: expanded.numbers(0, 0),
        pool: page.numbers::<u8>(0, page_numbers).cast(),
        positions: positions.numbers(0, rows),
        pool_indices: indices.numbers(0, rows),
        inverse_frequencies: frequencies.numbers(0, HEAD / 2),
        page_stride: strides,
        head_stride: strides,
        layer_offset: 0,
        rows: rows as i32,
        heads: 0,
        kv_heads: 1,
        head_dim: HEAD as i32,
        page_tokens: rows as i32,
        epsilon: 0.0,
        fp8: 1,
    };
    let expand = ExpandKv {
        pool: page.numbers::<u8>(0, page_numbers).cast_const().cast(),
        kv_pages: list.numbers(0, 1),
        out: expanded.numbers(0, page_numbers),
        page_stride: strides,
        head_stride: strides,
        layer_offset: 0,
        pages: 1,
        kv_heads: 1,
        page_tokens: rows as i32,
        head_dim: HEAD as i32,
    };
    // SAFETY: the buffers have the sizes in the arguments, as just checked, and live until the wait below. There are no queries.
    let launched = unsafe {
        launch("baton_rope_append", baton_rope_append, &append, stream)
            .and_then(|()| launch("baton_expand_kv", baton_expand_kv, &expand, stream))
    };
    stream.wait()?;
    launched?;
    let numbers: Vec<bf16> = expanded.read_at(page_numbers, page_numbers / 2)?;
    Ok((page.read_at(page_numbers / 2, page_numbers / 2)?, numbers.into_iter().map(bf16::to_f32).collect()))
}
