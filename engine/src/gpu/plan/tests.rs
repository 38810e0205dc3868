//! Tests of the lists of whole steps against a plain computation over the batch.

use proptest::prelude::*;

use super::pieces::{ROW_PIECES_MAX, piece_tokens};
use super::*;
use crate::kv::{PageId, PageTable};
use crate::sampling::{Sample, Sampling};

const PAGE_TOKENS: usize = 16;
const CAPACITY: StepCapacity = StepCapacity { rows: 256, chunks: 256, pages: 4096 };

/// A chunk that owns its tokens and pages.
#[derive(Clone, Debug)]
struct Owned {
    tokens: Vec<u32>,
    source: TokenSource,
    start: u32,
    pages: PageTable,
    is_sampled: bool,
}

impl Owned {
    /// The `tokens` of a prompt after `start` others. The page table starts at page `first` and has one page more than
    /// needed.
    fn prompt(tokens: &[u32], start: u32, first: u32) -> Self {
        let pages = (start as usize + tokens.len()).div_ceil(PAGE_TOKENS) as u32 + 1;
        let pages = (first..first + pages).map(PageId).collect();
        Self { tokens: tokens.to_vec(), source: TokenSource::Prompt, start, pages, is_sampled: true }
    }

    fn row(token: u32, start: u32, first: u32) -> Self {
        Self { source: TokenSource::Sampled, ..Self::prompt(&[token], start, first) }
    }

    fn chunk(&self) -> Chunk<'_> {
        Chunk {
            sequence: 0,
            tokens: &self.tokens,
            source: self.source,
            start: self.start,
            pages: &self.pages,
            sample: self.is_sampled.then(Sample::greedy),
            score: None,
        }
    }
}

fn laid_out(owned: &[Owned], followed: &[usize], decode_rows: usize) -> (Plan, Vec<i32>) {
    let batch: Vec<Chunk<'_>> = owned.iter().map(Owned::chunk).collect();
    let mut plan = Plan::new(CAPACITY, PAGE_TOKENS);
    // An earlier step leaves its lists.
    let mut words = vec![0x55; plan.words_max()];
    let earlier = [Owned::prompt(&[1; 40], 5, 900), Owned::row(2, 700, 800)];
    let earlier: Vec<Chunk<'_>> = earlier.iter().map(Owned::chunk).collect();
    plan.lay_out(&earlier, |_| 1, 0, &mut words);
    plan.lay_out(&batch, |index| followed[index], decode_rows, &mut words);
    (plan, words)
}

fn pool_indices(words: &[i32]) -> Vec<i64> {
    words
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[low, high]| i64::from(*high) << 32 | i64::from(*low as u32))
        .collect()
}

/// Every list of a step, by name.
fn lists(plan: &Plan) -> Vec<(&'static str, Range<usize>)> {
    let (prefill, decode) = (&plan.prefill, &plan.decode);
    vec![
        ("tokens", plan.tokens()),
        ("positions", plan.positions()),
        ("pool indices", plan.pool_indices()),
        ("sampled rows", plan.sampled_rows()),
        ("settings", plan.settings()),
        ("reported rows", plan.reported_rows()),
        ("scored rows", plan.scored_rows()),
        ("targets", plan.targets()),
        ("decode page starts", plan.page_starts()),
        ("decode last pages", plan.last_page_tokens()),
        ("row pieces", plan.row_pieces()),
        ("piece rows", plan.piece_rows()),
        ("piece starts", plan.piece_starts()),
        ("piece lengths", plan.piece_lengths()),
        ("prompts' pages", plan.pages(prefill)),
        ("decode pages", plan.pages(decode)),
    ]
}

#[test]
fn every_list_has_the_prompts_first() {
    let owned = [
        Owned::row(7, 16, 100),
        Owned { is_sampled: false, ..Owned::prompt(&[1, 2, 3], 15, 200) },
        Owned::row(8, 0, 300),
        Owned::prompt(&[4, 5], 0, 400),
    ];
    let (plan, words) = laid_out(&owned, &[0; 4], 0);
    assert_eq!(plan.order, [1, 3, 0, 2]);
    assert_eq!((plan.rows, plan.sampled), (7, 3));
    assert_eq!((plan.prefill.chunks.clone(), plan.prefill.rows.clone()), (0..2, 0..5));
    assert_eq!((plan.decode.chunks.clone(), plan.decode.rows.clone()), (2..4, 5..7));
    assert_eq!(words[plan.tokens()], [1, 2, 3, 4, 5, 7, 8]);
    assert_eq!(words[plan.positions()], [15, 16, 17, 0, 1, 16, 0]);
    let page = |page: i64| page * PAGE_TOKENS as i64;
    let expect = [page(200) + 15, page(201), page(201) + 1, page(400), page(400) + 1, page(101), page(300)];
    assert_eq!(pool_indices(&words[plan.pool_indices()]), expect);
    assert_eq!(words[plan.sampled_rows()], [4, 5, 6]);
    assert_eq!(words[plan.page_starts()], [0, 2, 3]);
    assert_eq!(words[plan.pages(&plan.prefill)], [200, 201, 400]);
    assert_eq!(words[plan.pages(&plan.decode)], [100, 101, 300]);
    assert_eq!(words[plan.last_page_tokens()], [1, 1]);
    let PromptLists { row_starts, page_starts, kv_tokens } = &plan.prompts;
    assert_eq!(
        (&row_starts[..], &page_starts[..], &kv_tokens[..]),
        (&[0, 3, 5][..], &[0, 2, 3][..], &[18, 2][..])
    );
    assert_eq!((plan.pieces(), &words[plan.row_pieces()]), (2, &[0, 1, 2][..]));
}

#[test]
fn a_row_that_follows_names_the_row_of_the_previous_step() {
    let follows = |owned: Owned| Owned { source: TokenSource::Follows, ..owned };
    let owned = [Owned::row(9, 3, 0), follows(Owned::row(9, 4, 10)), follows(Owned::row(9, 5, 20))];
    let (plan, words) = laid_out(&owned, &[0, 0, 11], 0);
    assert_eq!(words[plan.tokens()], [9, -1, -12]);
}

#[test]
fn padding_rows_of_a_graph_write_nothing() {
    let owned = [Owned::row(5, 700, 0), Owned::row(6, 20, 100)];
    let (plan, words) = laid_out(&owned, &[0; 2], 4);
    assert_eq!((plan.rows, plan.sampled, plan.decode.rows.clone()), (4, 4, 0..4));
    assert_eq!(words[plan.tokens()], [5, 6, 0, 0]);
    assert_eq!(words[plan.positions()], [700, 20, 0, 0]);
    assert_eq!(pool_indices(&words[plan.pool_indices()])[2..], [-1, -1]);
    assert_eq!(words[plan.page_starts()], [0, 44, 46, 47, 48]);
    assert_eq!(words[plan.pages(&plan.decode)][46..], [0, 0]);
    assert_eq!(words[plan.last_page_tokens()], [13, 5, 1, 1]);
    assert_eq!(words[plan.settings()][2 * SETTING_WORDS..], [0; 2 * SETTING_WORDS]);
    // 701 tokens have three pieces, so there are six pieces and the capacity is eight.
    assert_eq!((plan.pieces(), &words[plan.row_pieces()]), (8, &[0, 3, 4, 5, 6][..]));
    assert_eq!(words[plan.piece_rows()][..6], [0, 0, 0, 1, 2, 3]);
    assert_eq!(words[plan.piece_starts()][..6], [0, 256, 512, 0, 0, 0]);
    assert_eq!(words[plan.piece_lengths()][..6], [256; 6]);
}

#[test]
fn a_graph_finds_the_lists_of_every_step_of_its_size() {
    let steps = [
        vec![Owned::row(1, 0, 0)],
        vec![Owned::row(1, 255, 7), Owned::row(2, 3, 90)],
        vec![Owned::row(1, 0, 0), Owned::row(2, 80, 50), Owned::row(3, 0, 99)],
    ];
    // Page tables come last, because their lengths differ.
    let layouts: Vec<_> = steps
        .iter()
        .map(|owned| {
            let (plan, _) = laid_out(owned, &[0; 3], 4);
            let starts: Vec<_> = lists(&plan).into_iter().map(|(name, range)| (name, range.start)).collect();
            (plan.rows, plan.sampled, plan.pieces(), starts)
        })
        .collect();
    assert!(layouts.iter().all(|step| *step == layouts[0]), "{layouts:?}");
}

#[test]
fn the_words_of_a_step_do_not_depend_on_the_capacity() {
    let (owned, mut words) = (Owned::row(5, 700, 0), vec![0; 1 << 16]);
    let counts = [(1, 1), (256, 8), (1024, 1024)].map(|(rows, chunks)| {
        let mut plan = Plan::new(StepCapacity { rows, chunks, pages: 64 }, PAGE_TOKENS);
        plan.lay_out(&[owned.chunk()], |_| 0, 0, &mut words);
        plan.words()
    });
    assert!(counts.iter().all(|words| *words == counts[0]), "{counts:?}");
}

#[test]
#[should_panic = "exceeds the capacity"]
fn a_step_beyond_the_capacity_is_not_laid_out() {
    let mut plan = Plan::new(StepCapacity { rows: 2, chunks: 2, pages: 64 }, PAGE_TOKENS);
    let owned = Owned::prompt(&[1, 2, 3], 0, 0);
    plan.lay_out(&[owned.chunk()], |_| 0, 0, &mut vec![0; 1 << 16]);
}

#[test]
fn too_many_page_table_entries_do_not_fit() {
    let plan = Plan::new(CAPACITY, PAGE_TOKENS);
    assert!(plan.has_room(CAPACITY.pages) && !plan.has_room(CAPACITY.pages + 1));
}

#[test]
fn a_context_has_pieces_that_cover_it() {
    for context in (1..20_000).chain([131_072, 1 << 24]) {
        let (length, count) = (piece_tokens(context), pieces(context));
        assert!(
            length * count >= context && length * (count - 1) < context,
            "{context}: {count} of {length}"
        );
        assert!(count <= 32 && length >= 256, "{context}: {count} of {length}");
    }
    assert_eq!((pieces(256), pieces(257), pieces(8192), pieces(8193)), (1, 2, 32, 17));
}

#[test]
fn settings_are_encoded_for_the_device() {
    let how = Sampling {
        temperature: 0.5,
        top_p: 0.25,
        min_p: 0.125,
        top_k: 40,
        seed: 7 << 32 | 9,
        ..Sampling::GREEDY
    };
    let bits = |value: f32| value.to_bits().cast_signed();
    let limits = [bits(0.5), bits(0.25), bits(0.125), 40, 9, 7, 77];
    let with = |penalties: [f32; 3]| {
        let mut words = [0; SETTING_WORDS];
        words[..7].copy_from_slice(&limits);
        words[7..10].copy_from_slice(&penalties.map(bits));
        words
    };
    assert_eq!(settings_of(Some((&how, 77))), with([1.0, 0.0, 0.0]));
    let how = Sampling { repetition_penalty: 1.5, presence_penalty: 0.25, frequency_penalty: -0.5, ..how };
    assert_eq!(settings_of(Some((&how, 77))), with([1.5, 0.25, -0.5]));
    assert_eq!(settings_of(None), [0; SETTING_WORDS]);
}

fn any_chunk() -> impl Strategy<Value = Owned> {
    (0u32..3, 1usize..20, 0u32..900, any::<bool>(), 0u32..1000).prop_map(
        |(kind, length, start, sampled, first)| {
            let tokens: Vec<u32> = (0..length as u32).map(|n| first + n).collect();
            match kind {
                0 => Owned::row(first, start, first),
                1 => Owned { source: TokenSource::Follows, ..Owned::row(first, start, first) },
                _ => Owned { is_sampled: sampled, ..Owned::prompt(&tokens, start, first) },
            }
        },
    )
}

/// The prefix sums of `counts`, starting with 0 and ending with the total.
fn starts(counts: impl Iterator<Item = usize>) -> Vec<i32> {
    let mut starts = vec![0];
    for count in counts {
        starts.push(starts[starts.len() - 1] + count as i32);
    }
    starts
}

proptest! {
    #[test]
    fn lists_of_random_batches_match_a_plain_computation(owned in proptest::collection::vec(any_chunk(), 1..12), rows in 0usize..16) {
        let graph = owned.iter().all(|chunk| chunk.source != TokenSource::Prompt && chunk.is_sampled);
        let decode_rows = if graph && rows >= owned.len() { rows } else { 0 };
        let followed: Vec<usize> = (0..owned.len()).map(|n| 3 * n).collect();
        let (plan, words) = laid_out(&owned, &followed, decode_rows);

        let chunks: Vec<&Owned> = plan.order.iter().map(|index| &owned[*index]).collect();
        let prompts = chunks.iter().take_while(|chunk| chunk.source == TokenSource::Prompt).count();
        prop_assert!(chunks[prompts..].iter().all(|chunk| chunk.source != TokenSource::Prompt));
        let fillers = decode_rows.saturating_sub(owned.len());
        prop_assert_eq!(plan.prefill.chunks.clone(), 0..prompts);
        prop_assert_eq!(plan.decode.chunks.clone(), prompts..owned.len() + fillers);
        let filler = Owned { tokens: vec![0], source: TokenSource::Sampled, start: 0, pages: [PageId(0)].into(), is_sampled: true };
        let all: Vec<&Owned> = chunks.iter().copied().chain((0..fillers).map(|_| &filler)).collect();

        let mut row = 0;
        let stored = pool_indices(&words[plan.pool_indices()]);
        for (index, chunk) in all.iter().enumerate() {
            for (offset, token) in chunk.tokens.iter().enumerate() {
                let position = chunk.start as usize + offset;
                let token = match chunk.source {
                    TokenSource::Follows => -1 - 3 * plan.order[index] as i32,
                    _ => *token as i32,
                };
                let page = chunk.pages[position / PAGE_TOKENS].0 as usize;
                let expect = if index < owned.len() { (page * PAGE_TOKENS + position % PAGE_TOKENS) as i64 } else { -1 };
                let found = (words[plan.tokens()][row], words[plan.positions()][row], stored[row]);
                prop_assert_eq!(found, (token, position as i32, expect), "row {}", row);
                row += 1;
            }
        }
        prop_assert_eq!(plan.rows, row);
        let last_rows = starts(all.iter().map(|chunk| chunk.tokens.len()));
        let sampled: Vec<i32> =
            all.iter().zip(&last_rows[1..]).filter(|(chunk, _)| chunk.is_sampled).map(|(_, end)| end - 1).collect();
        prop_assert_eq!(&words[plan.sampled_rows()], &sampled[..]);
        prop_assert_eq!(plan.sampled, sampled.len());

        let context = |chunk: &&Owned| chunk.start as usize + chunk.tokens.len();
        let used = |chunk: &&Owned| context(chunk).div_ceil(PAGE_TOKENS);
        for (part, of_part) in [(&plan.prefill, &all[..prompts]), (&plan.decode, &all[prompts..])] {
            let tables: Vec<i32> =
                of_part.iter().flat_map(|chunk| &chunk.pages[..used(chunk)]).map(|page| page.0 as i32).collect();
            prop_assert_eq!(&words[plan.pages(part)], &tables[..]);
        }

        let (of_prompts, decodes) = all.split_at(prompts);
        prop_assert_eq!(&plan.prompts.row_starts, &starts(of_prompts.iter().map(|chunk| chunk.tokens.len())));
        prop_assert_eq!(&plan.prompts.page_starts, &starts(of_prompts.iter().map(used)));
        prop_assert!(plan.prompts.kv_tokens.iter().map(|tokens| *tokens as usize).eq(of_prompts.iter().map(context)));
        prop_assert_eq!(&words[plan.page_starts()], &starts(decodes.iter().map(used))[..]);
        let last: Vec<i32> = decodes.iter().map(|chunk| ((context(chunk) - 1) % PAGE_TOKENS + 1) as i32).collect();
        prop_assert_eq!(&words[plan.last_page_tokens()], &last[..]);

        let contexts: Vec<usize> = decodes.iter().map(context).collect();
        prop_assert_eq!(&words[plan.row_pieces()], &starts(contexts.iter().map(|context| pieces(*context)))[..]);
        let real: Vec<(i32, i32, i32)> = contexts.iter().enumerate().flat_map(|(row, context)| {
            let length = piece_tokens(*context);
            (0..pieces(*context)).map(move |piece| (row as i32, (piece * length) as i32, length as i32))
        }).collect();
        prop_assert!(plan.pieces() >= real.len() && (decode_rows > 0 || plan.pieces() == real.len()));
        for (piece, expect) in real.iter().enumerate() {
            let found = (words[plan.piece_rows()][piece], words[plan.piece_starts()][piece], words[plan.piece_lengths()][piece]);
            prop_assert_eq!(&found, expect, "piece {}", piece);
        }

        // Each list lies within the copied words, and no two lists overlap.
        let mut ranges: Vec<_> = lists(&plan).into_iter().map(|(name, range)| (range.start, range.end, name)).collect();
        ranges.retain(|(start, end, _)| start < end);
        ranges.sort_unstable();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:?}", ranges);
        prop_assert!(ranges.last().unwrap().1 == plan.words() && plan.words() <= plan.words_max(), "{:?}", ranges);
    }
}

#[test]
fn the_kernel_joins_as_many_pieces_as_a_row_may_have() {
    let source = include_str!("../../../kernels/decode.cu");
    assert!(source.contains(&format!("constexpr int PIECES_MAX = {ROW_PIECES_MAX};")));
}
