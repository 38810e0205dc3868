//! Checks of pages in FP8: their codes, against those of the CPU, and steps whose prompts are computed in groups.

use anyhow::{Context, Result, ensure};
use engine::cpu::CpuEngine;
use engine::{Chunk, CudaEngine, Engine, KvDtype, PageId, PageTable, Sample, TokenSource};

use super::modes::Modes;
use super::run;

/// Root mean square of the difference of the first layer's keys and values, relative to those of the CPU. The GPU rounds activations to bf16 first, and a
/// number near the middle of two codes then may become the other one, which differs by a sixteenth to an eighth.
const ERROR_MOST: f64 = 0.04;
/// The same if rows are in FP8: the numbers of rows that the layer multiplies may become other codes too.
const ERROR_MOST_OF_ROWS: f64 = 0.08;

/// Floats near all rounding boundaries of e4m3, and others of all sizes.
fn floats() -> Vec<f32> {
    let low = [0u32, 1, 0x7_ffff, 0x8_0000, 0x8_0001, 0xf_ffff];
    let near = (0..1 << 12).flat_map(|high: u32| low.map(|low| f32::from_bits(high << 20 | low)));
    // Multiples of half the smallest number.
    let small = (0..64).flat_map(|n| {
        let bits = (n as f32 / 1024.0).to_bits();
        [bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits)
    });
    let others = (0..1u32 << 16).map(|n| f32::from_bits(n.wrapping_mul(2_654_435_761)));
    let mut all: Vec<f32> =
        near.chain(small.clone()).chain(small.map(|number| -number)).chain(others).collect();
    all.resize(all.len().next_multiple_of(64), 1.0);
    all
}

/// Checks that the GPU rounds and expands numbers as the CPU does, bit for bit. Returns their count.
pub(super) fn check_codes(gpu: &CudaEngine) -> Result<usize> {
    let floats = floats();
    let (codes, numbers) = gpu.stored_values(&floats)?;
    // The kernel adds a bias of zero.
    let added: Vec<f32> = floats.iter().map(|number| number + 0.0).collect();
    let (right_codes, right_numbers) = KvDtype::Fp8.kept(&added);
    for (index, float) in floats.iter().enumerate() {
        let (found, right) = (codes[index], right_codes[index]);
        ensure!(found == right, "{float:e} ({:#x}) has code {found:#x}, not {right:#x}", float.to_bits());
        let (found, right) = (numbers[index], right_numbers[index]);
        let same = found.to_bits() == right.to_bits() || found.is_nan() && right.is_nan();
        ensure!(same, "code {:#x} is {found}, not {right}", codes[index]);
    }
    Ok(floats.len())
}

/// The numbers of FP8 codes.
fn numbers(codes: &[u8]) -> Vec<f32> {
    codes.iter().map(|code| number(*code)).collect()
}

/// The value of an e4m3 code.
fn number(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Compares the first layer in the full pages of a prompt that both engines have computed, in the same pages. Later layers see the rounding of all
/// earlier ones. Returns the share of codes that differ and the error of the numbers.
pub(super) fn compare(
    cpu: &CpuEngine,
    gpu: &CudaEngine,
    table: &[PageId],
    tokens: usize,
) -> Result<(f64, f64)> {
    ensure!(cpu.kv().layout() == gpu.kv().layout(), "the pages have different layouts");
    let (page_bytes, page_tokens) =
        (cpu.kv().layout().page_bytes() as usize, cpu.kv().layout().page_tokens as usize);
    let cells = cpu.kv().cells().context("the CPU's pool is in host memory")?;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    // A page is [kv_head][layer][keys, values][token][dim].
    let layout = cpu.kv().layout();
    let (heads, layers) = (layout.kv_heads as usize, layout.layers as usize);
    let of_head = page_bytes / heads;
    for page in &table[..tokens / page_tokens] {
        let of_cpu = &cells[page.0 as usize * page_bytes..][..page_bytes];
        let of_gpu = gpu.read_page(*page)?;
        for head in 0..heads {
            let first_layer = head * of_head..head * of_head + of_head / layers;
            let cells = of_cpu[first_layer.clone()].iter();
            theirs.extend(cells.map(|cell| cell.load(std::sync::atomic::Ordering::Relaxed)));
            ours.extend_from_slice(&of_gpu[first_layer]);
        }
    }
    let differing = theirs.iter().zip(&ours).filter(|(a, b)| a != b).count() as f64 / theirs.len() as f64;
    let error = super::error(&numbers(&ours), &numbers(&theirs));
    let most = if Modes::rounds_rows() { ERROR_MOST_OF_ROWS } else { ERROR_MOST };
    ensure!(
        error <= most,
        "keys and values differ from the CPU's by {error:.4}, and {differing:.3} of the codes differ"
    );
    Ok((differing, error))
}

/// Computes many prompts that share their first pages: each alone, and all in one step, whose page tables have more entries than the pool has pages. Such
/// a step computes its prompts in groups. Checks that the logits are the same, bit for bit. Returns the number of prompts.
pub(super) fn check_groups(gpu: &mut CudaEngine) -> Result<usize> {
    const SHARED: u32 = 10;
    let layout = gpu.kv().layout();
    let (page_tokens, pages) = (layout.page_tokens, gpu.kv().pages());
    let (vocabulary, room) = (gpu.model().vocabulary, gpu.limits().tokens.min(gpu.limits().rows));
    let count = (pages / (SHARED + 1) + 2).min(room).min(pages - SHARED);
    let start = SHARED * page_tokens;
    if count * (SHARED + 1) <= pages || start >= gpu.model().context_tokens {
        return Ok(0);
    }
    let shared: PageTable = (0..SHARED).map(PageId).collect();
    let prefix: Vec<u32> = (0..start).map(|n| n * 7919 % vocabulary).collect();
    let chunk = |tokens, start, pages, sample| Chunk {
        sequence: 0,
        tokens,
        source: TokenSource::Prompt,
        start,
        pages,
        sample,
        score: None,
    };
    for (part, tokens) in prefix.chunks(128).enumerate() {
        run(gpu, &[chunk(tokens, part as u32 * 128, &shared, None)])?;
    }
    let tables: Vec<PageTable> = (0..count).map(|n| shared.extended(&[PageId(SHARED + n)])).collect();
    let last: Vec<[u32; 1]> = (0..count).map(|n| [n * 31 % vocabulary]).collect();
    let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    let mut alone = Vec::new();
    for (tokens, table) in last.iter().zip(&tables) {
        run(gpu, &[chunk(tokens, start, table, Some(Sample::greedy()))])?;
        alone.push(bits(gpu.logits(0)?));
    }
    let batch: Vec<Chunk<'_>> = last
        .iter()
        .zip(&tables)
        .enumerate()
        .map(|(n, (tokens, table))| Chunk {
            sequence: n as u64,
            ..chunk(tokens, start, table, Some(Sample::greedy()))
        })
        .collect();
    run(gpu, &batch)?;
    for (n, alone) in alone.iter().enumerate() {
        ensure!(
            bits(gpu.logits(n)?) == *alone,
            "prompt {n} of {count} has other logits in groups than alone"
        );
    }
    Ok(batch.len())
}
