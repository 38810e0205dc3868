//! The router's record of one member: its capabilities, its queue, its speed and its failures.

use std::time::{Duration, Instant};

use connector::frame::Capabilities;

use super::index::Key;
use super::{DecodeShare, Joining};
use crate::messages::{DecodeSteps, LoadReport, PrefillOutcome};

/// Minimum number of computed tokens of a prefill whose speed is measured. For fewer tokens the fixed cost of a step dominates.
const MEASURED_TOKENS: u32 = 16;

/// After this time without a measurement, a slow member may have become as fast as the others.
const SPEED_VALID: Duration = Duration::from_secs(30);

/// Time in which the weight of past work halves in [`Member::recent`].
const WORK_HALVES: Duration = Duration::from_secs(120);

/// A member gets further answers to decode while its steps take at most this many times as long as if all answers of the fleet were spread evenly. On a
/// GPU, where a step mostly reads the weights, tens of rows fit; on a CPU, where each row costs the same, one.
const STRETCH: f64 = 1.5;

/// Rows that a member may have beyond twice its measured rows.
const UNMEASURED_ROWS: f64 = 8.0;

/// First and maximum length of the pause in which a member gets no prompts after a failed prefill. Each further failure in a row doubles the
/// pause. The first pause is long enough for all prompts in progress to fail together. At the longest pause, a member that never
/// recovers costs one further placement per 30 s.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The pause after one or more failed prefills in a row.
#[derive(Debug)]
struct Failing {
    /// Length of the pause.
    pause: Duration,
    /// End of the pause.
    until: Instant,
}

/// A moving average in which the newest sample has the weight 1/8. A sample counts as at most twice the average, so that a process that was
/// stopped for a while does not look slow.
#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, sample: f64) {
        self.add_any(self.0.map_or(sample, |known| sample.min((2.0 * known).max(1e-3))));
    }

    /// Adds a sample, however large it is.
    fn add_any(&mut self, sample: f64) {
        self.0 = Some(self.0.map_or(sample, |known| known + (sample - known) / 8.0));
    }
}

/// A number of computed tokens that halves in [`WORK_HALVES`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work(Option<(f64, Instant)>);

impl Work {
    fn new(tokens: f64, now: Instant) -> Self {
        Self(Some((tokens, now)))
    }

    fn at(self, now: Instant) -> f64 {
        self.0.map_or(0.0, |(tokens, at)| {
            let halvings = now.saturating_duration_since(at).as_secs_f64() / WORK_HALVES.as_secs_f64();
            tokens * (-halvings).exp2()
        })
    }

    /// The larger of two, at the later of their times.
    pub(super) fn or_larger(self, other: Self) -> Self {
        let times = [self.0, other.0].into_iter().flatten().map(|(_, at)| at);
        let Some(at) = times.max() else { return self };
        Self::new(self.at(at).max(other.at(at)), at)
    }
}

/// A set of members.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<u64>);

impl KeySet {
    pub(super) fn contains(&self, key: Key) -> bool {
        self.0.get(key as usize / 64).is_some_and(|word| word & (1 << (key % 64)) != 0)
    }

    pub(super) fn insert(&mut self, key: Key) {
        let word = key as usize / 64;
        self.0.resize(self.0.len().max(word + 1), 0);
        self.0[word] |= 1 << (key % 64);
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(word) = self.0.get_mut(key as usize / 64) {
            *word &= !(1 << (key % 64));
        }
    }
}

/// A member of the fleet.
#[derive(Debug)]
pub(super) struct Member<M> {
    pub(super) id: M,
    /// The name that all routers know the member by.
    pub(super) name: u64,
    pub(super) capabilities: Capabilities,
    /// It takes new requests.
    pub(super) accepts: bool,
    /// The other members that can prefill for it; `None`: all.
    pub(super) prefillers: Option<KeySet>,
    /// Maximum number of tokens of a prompt and its answer together.
    pub(super) context_tokens: u32,
    /// Tokens that we expect the member to compute for the prompts that were placed there and are not computed yet.
    pub(super) waiting: u64,
    /// Reported tokens of prompts that others placed there and that are not computed yet.
    others: u64,
    /// Reported tokens that the member has already computed of the prompts in `others` and `waiting`.
    begun: u64,
    /// Microseconds per computed token.
    speed: Average,
    measured_at: Option<Instant>,
    /// The member's own measurement of the same, and when it was reported.
    reported_speed: Option<(f64, Instant)>,
    /// A prefill that was placed here has ended.
    pub(super) is_tried: bool,
    /// Microseconds from the first token to the adoption of the last page.
    hand_over: Average,
    /// Set if prefills have failed since the last one that succeeded.
    failing: Option<Failing>,
    /// Tokens computed here recently, and the time of that value.
    pub(super) work: Work,
    /// Reported requests that wait for admission.
    pub(super) queued: u64,
    /// Reported sequences that decode.
    decoding: u32,
    /// The member's measured steps that only decode.
    pub(super) decode_steps: Option<DecodeSteps>,
    /// Pages of the pool.
    pub(super) pool_pages: u32,
    /// Pages in use, as reported.
    used_pages: u32,
    /// The requests that were placed here to decode and have not ended.
    pub(super) placed: DecodeShare,
    /// Those of them that no report contains yet.
    pub(super) unreported: DecodeShare,
    /// The requests in `placed` that the last report contains. Those that have ended since then are among them.
    reported: DecodeShare,
}

impl<M> Member<M> {
    /// A member without prompts. `work` is the recent work that it starts with.
    pub(super) fn new(id: M, joining: Joining, work: Work) -> Self {
        let Joining { name, capabilities, pool_pages } = joining;
        Self {
            id,
            name,
            capabilities,
            accepts: true,
            prefillers: None,
            context_tokens: u32::MAX,
            waiting: 0,
            others: 0,
            begun: 0,
            speed: Average::default(),
            measured_at: None,
            reported_speed: None,
            is_tried: false,
            hand_over: Average::default(),
            failing: None,
            work,
            queued: 0,
            decoding: 0,
            decode_steps: None,
            pool_pages,
            used_pages: 0,
            placed: DecodeShare::default(),
            unreported: DecodeShare::default(),
            reported: DecodeShare::default(),
        }
    }

    /// Tokens that are to be computed before a prompt that is placed here now.
    pub(super) fn queue(&self) -> u64 {
        self.others.saturating_add(self.waiting).saturating_sub(self.begun)
    }

    /// True if this member may get prompts now. After a failure it gets none during a pause, and then one at a time until one
    /// succeeds.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.failing.as_ref().is_none_or(|failing| now >= failing.until && self.waiting == 0)
    }

    /// Microseconds per computed token, if known.
    pub(super) fn speed(&self) -> Option<f64> {
        self.reported_speed.map(|(speed, _)| speed).or(self.speed.0)
    }

    /// The member's own measurement, if it is not old: microseconds per computed token.
    pub(super) fn valid_report(&self, now: Instant) -> Option<f64> {
        let is_valid = |at: Instant| now.saturating_duration_since(at) <= SPEED_VALID;
        self.reported_speed.filter(|(_, at)| is_valid(*at)).map(|(speed, _)| speed)
    }

    /// The speed to expect if the fastest member has the speed `fastest`.
    pub(super) fn expected_speed(&self, now: Instant, fastest: f64) -> f64 {
        self.valid_report(now).or(self.speed.0.filter(|_| !self.is_speed_old(now))).unwrap_or(fastest)
    }

    fn is_speed_old(&self, now: Instant) -> bool {
        self.measured_at.is_some_and(|at| now.saturating_duration_since(at) > SPEED_VALID)
    }

    /// Microseconds that the transfer of the KV adds to a prefill.
    pub(super) fn hand_over(&self) -> f64 {
        self.hand_over.0.unwrap_or(0.0)
    }

    /// A hand-over has added this time.
    pub(super) fn handed_over(&mut self, micros: u64) {
        self.hand_over.add_any(micros as f64);
    }

    /// Tokens computed recently.
    pub(super) fn recent(&self, now: Instant) -> f64 {
        self.work.at(now)
    }

    /// Pages that are free for further requests. The reported pages in use lack the requests that the report does not contain. Requests
    /// that the report contains may not have all their pages yet.
    pub(super) fn room(&self) -> u32 {
        let since = self.placed.minus(self.reported).pages;
        self.pool_pages.saturating_sub(self.used_pages.saturating_add(since).max(self.placed.pages))
    }

    /// A request is placed here to decode.
    pub(super) fn place_decode(&mut self, share: DecodeShare) {
        self.placed = self.placed.plus(share);
        self.unreported = self.unreported.plus(share);
    }

    /// The next report contains this request that was placed here to decode.
    pub(super) fn decode_in_reports(&mut self, share: DecodeShare) {
        self.unreported = self.unreported.minus(share);
    }

    /// A request that was placed here to decode has ended.
    pub(super) fn decoded(&mut self, share: DecodeShare) {
        self.placed = self.placed.minus(share);
    }

    /// The number of sequences that decode here at one time, as far as the router knows: those that are reported and those that it expects from
    /// its own placements since that report, or, if they are more, those that it expects from all its own placements.
    pub(super) fn rows(&self) -> f64 {
        let since = f64::from(self.placed.minus(self.reported).millirows) / 1e3;
        (f64::from(self.decoding) + since).max(f64::from(self.placed.millirows) / 1e3)
    }

    /// The part of its life, in thousandths, in which a request decodes here, if it samples `tokens` tokens after a wait of `wait` microseconds.
    pub(super) fn millirows(&self, tokens: u32, wait: f64) -> u32 {
        let Some(steps) = self.decode_steps else { return 1000 };
        let decode = f64::from(tokens) * f64::from(steps.micros);
        (1e3 * decode / (decode + wait).max(1.0)).ceil() as u32
    }

    /// True if a step that decodes one more row is expected to take at most [`STRETCH`] times as long as a step of `even` rows, and if this member is
    /// not much slower than the fastest one, whose shortest steps take `least` microseconds. Beyond twice the known rows and
    /// [`UNMEASURED_ROWS`], nothing is expected; nor beyond the first row if nothing is measured. A member in which requests wait for admission has no free row.
    pub(super) fn has_free_row(&self, even: f64, least: f64) -> bool {
        let rows = self.rows() + 1.0;
        if self.queued > 0 {
            return false;
        }
        let Some(steps) = self.decode_steps else { return rows <= 1.0 };
        let own_least = f64::from(steps.least_micros.min(steps.micros));
        // The first row takes the shortest step, and further ones lengthen it evenly.
        let per_row = (f64::from(steps.micros) - own_least) / f64::from(steps.rows.saturating_sub(1).max(1));
        let micros = |rows: f64| own_least + per_row * (rows - 1.0).max(0.0);
        let known = f64::from(steps.rows.max(self.decoding));
        rows <= 2.0 * known + UNMEASURED_ROWS
            && micros(rows) <= STRETCH * micros(even)
            && own_least <= STRETCH * least
    }

    /// A prompt is placed here. We expect that `tokens` of its tokens must be computed.
    pub(super) fn place(&mut self, now: Instant, tokens: u32) {
        self.waiting += u64::from(tokens);
        self.work = Work::new(self.recent(now) + f64::from(tokens), now);
    }

    /// The member has reported its load. The report contains `own` tokens of `waiting`, and the placed requests without `unreported`.
    pub(super) fn reported(&mut self, now: Instant, report: &LoadReport, own: u64) {
        // A report may lack prompts that we placed moments ago, so it does not change `waiting`.
        self.others = (report.waiting_tokens + report.begun_tokens).saturating_sub(own);
        self.begun = report.begun_tokens;
        self.decoding = report.decoding;
        self.reported = self.placed.minus(self.unreported);
        self.decode_steps = report.decode.or(self.decode_steps);
        // Without prompts, the report repeats an old measurement.
        let repeats = |(speed, at): (f64, Instant)| {
            (report.micros_per_token() == Some(speed) && report.waiting_tokens == 0).then_some((speed, at))
        };
        let repeated = self.reported_speed.and_then(repeats);
        self.reported_speed = repeated.or(report.micros_per_token().map(|speed| (speed, now)));
    }

    /// The member has `pool_pages` pages and uses `used_pages` of them.
    pub(super) fn set_room(&mut self, pool_pages: u32, used_pages: u32) {
        (self.pool_pages, self.used_pages) = (pool_pages, used_pages);
    }

    /// All requests that were placed here to decode are in the reports.
    pub(super) fn all_decodes_in_reports(&mut self) {
        self.unreported = DecodeShare::default();
    }

    /// A prompt that was placed here is in the reports from now on.
    pub(super) fn in_reports(&mut self, tokens: u32) {
        self.waiting = self.waiting.saturating_sub(u64::from(tokens));
    }

    /// A prefill that was placed here has ended. `tokens` is what [`place`](Self::place) got.
    pub(super) fn over(&mut self, now: Instant, tokens: u32, outcome: &PrefillOutcome) {
        self.waiting = self.waiting.saturating_sub(u64::from(tokens));
        self.is_tried = true;
        let computed = match *outcome {
            PrefillOutcome::Computed { tokens: computed, .. } => {
                // Most of the reported progress was made on the prompt that ends first.
                self.begun = self.begun.saturating_sub(u64::from(tokens));
                computed
            }
            PrefillOutcome::Failed | PrefillOutcome::Withdrawn => 0,
        };
        self.begun = self.begun.min(self.others.saturating_add(self.waiting));
        self.work = Work::new((self.recent(now) + f64::from(computed) - f64::from(tokens)).max(0.0), now);
        match *outcome {
            PrefillOutcome::Computed { micros, .. } => {
                self.failing = None;
                if computed >= MEASURED_TOKENS {
                    if self.is_speed_old(now) {
                        self.speed = Average::default();
                    }
                    self.speed.add(micros as f64 / f64::from(computed));
                    self.measured_at = Some(now);
                }
            }
            PrefillOutcome::Failed => self.failed(now),
            PrefillOutcome::Withdrawn => {}
        }
    }

    fn failed(&mut self, now: Instant) {
        let pause = match &self.failing {
            // The prompt was placed before the pause began.
            Some(failing) if now < failing.until => return,
            Some(failing) => (2 * failing.pause).min(PAUSE.1),
            None => PAUSE.0,
        };
        self.failing = Some(Failing { pause, until: now + pause });
    }
}
