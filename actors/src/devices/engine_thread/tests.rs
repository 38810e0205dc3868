use engine::{
    Chunk, KvPool, ModelInfo, PageId, SampledToken, Step, StepLimits, StepOutput, TokenMask, TokenSource,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::constraint::Constraint;
use crate::grammar::testing::{Counting, compiled};
use crate::messages::{PlannedChunk, PlannedConstraint, PlannedSample, StepResult};

/// Replaces the generator.
struct Recorder(UnboundedSender<Result<StepResult, EngineError>>);

impl Actor for Recorder {
    type Context = Context<Self>;
}

impl Handler<ToGenerator> for Recorder {
    type Result = ();

    fn handle(&mut self, message: ToGenerator, _: &mut Context<Self>) {
        let ToGenerator::StepFinished(step) = message else { panic!("{message:?}") };
        self.0.send(step.outcome).expect("the test waits");
    }
}

/// An engine whose first step fails when its tokens are read.
struct FailsOnce {
    /// The sequences of each submitted step.
    submitted: Arc<Mutex<Vec<Vec<u64>>>>,
    /// The first step fails once this many steps were submitted.
    fails_after: usize,
    has_failed: bool,
    /// The sequences of the step that waits for masks, and whether each needs one.
    pending: Vec<(u64, bool)>,
}

impl Engine for FailsOnce {
    fn model(&self) -> &ModelInfo {
        unreachable!("the thread does not ask for it")
    }

    fn kv(&self) -> &Arc<KvPool> {
        unreachable!("the thread does not ask for it")
    }

    fn limits(&self) -> StepLimits {
        StepLimits { tokens: 8, rows: 8 }
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        self.submitted.lock().unwrap().push(batch.iter().map(|chunk| chunk.sequence).collect());
        self.pending = batch.iter().map(|chunk| (chunk.sequence, chunk.is_constrained())).collect();
        let mut step = Step::unfinished();
        if !self.pending.iter().any(|(_, is_constrained)| *is_constrained) {
            self.sample(&mut step, &[])?;
        }
        Ok(step)
    }

    fn is_computed(&mut self, _: &Step) -> Result<bool, EngineError> {
        if self.has_failed {
            Err(EngineError::NotReady("a mask is waited for that never comes"))
        } else {
            Ok(false)
        }
    }

    fn sample(&mut self, step: &mut Step, masks: &[Option<TokenMask>]) -> Result<(), EngineError> {
        let mut masks = masks.iter();
        let mut is_taken =
            |is_constrained: bool| !is_constrained || masks.next().is_some_and(Option::is_some);
        let taken = self.pending.drain(..).filter(|(_, is_constrained)| is_taken(*is_constrained));
        let tokens = taken.map(|(sequence, _)| SampledToken { sequence, token: 0.into() }).collect();
        step.finish(StepOutput { tokens, scores: Vec::new() });
        Ok(())
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        if self.has_failed {
            return Ok(step.take());
        }
        self.has_failed = self.submitted.lock().unwrap().len() >= self.fails_after;
        if self.has_failed { Err(EngineError::WorkerPanicked) } else { Ok(None) }
    }

    fn acquire(&mut self, _: &[PageId]) -> Result<(), EngineError> {
        Ok(())
    }
}

fn chunk(key: u64, position: u32, constraint: Option<Arc<Constraint>>) -> PlannedChunk {
    let constraint = constraint.map(|constraint| PlannedConstraint { constraint, tokens: Vec::new() });
    PlannedChunk {
        key,
        tokens: vec![0],
        source: if position == 0 { TokenSource::Prompt } else { TokenSource::Follows },
        start: position,
        pages: [PageId(0)].into(),
        sample: Some(PlannedSample { how: Arc::default(), history: None, prompt: 1, constraint }),
        score: None,
    }
}

/// The first step fails once `fails_after` steps were submitted. Sequence 1 is constrained, and sequence 2 is not. The second step follows
/// the first and must have the sequences of `expect`.
async fn check(fails_after: usize, expect: &[u64]) {
    let submitted = Arc::default();
    let engine =
        FailsOnce { submitted: Arc::clone(&submitted), fails_after, has_failed: false, pending: Vec::new() };
    let (results, mut outcomes) = unbounded_channel();
    let results = Recorder(results).start().recipient();
    let pulse = EnginePulse::new(StepTimes::new(0, false));
    let thread = EngineThread::spawn(Box::new(engine), results, pulse).expect("a thread starts");
    let constraint = Arc::new(Constraint::new(compiled(Counting::default())));
    for position in 0..2 {
        let chunks = vec![chunk(1, position, Some(Arc::clone(&constraint))), chunk(2, position, None)];
        assert!(thread.submit(RunStep { chunks, acquire: Vec::new() }));
    }
    let mut next = async || {
        let outcome = tokio::time::timeout(Duration::from_secs(60), outcomes.recv()).await;
        outcome.expect("the step ends").expect("the thread lives")
    };
    assert_eq!(next().await, Err(EngineError::WorkerPanicked));
    let second = StepResult { tokens: vec![(2, 0.into())], late: vec![1], ..StepResult::default() };
    assert_eq!(next().await, Ok(second));
    assert_eq!(*submitted.lock().unwrap(), [&[1, 2], expect]);
}

#[actix::test]
async fn a_constrained_row_does_not_follow_a_failed_step() {
    check(1, &[2]).await;
}

#[actix::test]
async fn a_constrained_row_in_flight_does_not_wait_for_a_mask_after_the_step_before_failed() {
    check(2, &[1, 2]).await;
}

#[test]
fn the_limit_of_a_step_follows_from_measured_steps() {
    let (pulse, start) = (EnginePulse::new(StepTimes::new(0, false)), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(pulse.step(at(1000)), None, "an idle engine has no running step");
    pulse.begin(at(0), 192);
    let step = |age, limit| Some((Duration::from_secs(age), Duration::from_secs(limit)));
    assert_eq!(pulse.clone().step(at(150)), step(150, 60), "the floor applies to a model without parameters");
    pulse.end(at(150));
    assert_eq!(pulse.step(at(151)), None);
    pulse.begin(at(200), 192);
    assert_eq!(pulse.step(at(350)), step(150, 1500));
}
