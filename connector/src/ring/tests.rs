//! The ring, driven by a model of a pool, two requests and a network that delivers late.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn ring(capacity: u32) -> (GrantLedger, SpendLedger) {
    let capacity = NonZeroU32::new(capacity).expect("tests use at least one page");
    (GrantLedger::new(capacity), SpendLedger::new(capacity))
}

#[test]
fn a_ring_of_one_carries_any_number_of_pages() {
    let (mut grants, mut spends) = ring(1);
    for n in 0..1000u64 {
        let credit = grants.grant(PageIndex(3)).expect("the ring is empty");
        assert_eq!(credit.number, CreditNumber(n));
        assert_eq!(grants.grant(PageIndex(4)), Err(RingError::Full { capacity: 1, asked: 1 }));
        spends.accept(credit.number, &[credit.page]).expect("the next credit in order");
        assert_eq!(spends.spend(), Some(credit));
        assert_eq!(spends.spend(), None);
        let first = spends.announce(1).expect("one credit was spent");
        assert_eq!(grants.fill(first, 1), Ok(vec![PageIndex(3)]));
    }
}

#[test]
fn a_violation_of_the_rules_is_an_error_and_changes_nothing() {
    let (mut grants, mut spends) = ring(2);
    grants.grant(PageIndex(0)).expect("there is room");
    assert_eq!(grants.fill(CreditNumber(1), 1), Err(RingError::OutOfOrder { expected: 0, got: 1 }));
    assert_eq!(grants.fill(CreditNumber(0), 2), Err(RingError::NotOutstanding { count: 2, outstanding: 1 }));
    assert_eq!((grants.head(), grants.tail()), (1, 0));
    assert_eq!(
        spends.accept(CreditNumber(5), &[PageIndex(0)]),
        Err(RingError::OutOfOrder { expected: 0, got: 5 })
    );
    let three = [PageIndex(0), PageIndex(1), PageIndex(2)];
    assert_eq!(spends.accept(CreditNumber(0), &three), Err(RingError::Full { capacity: 2, asked: 3 }));
    assert_eq!(spends.announce(1), Err(RingError::NotOutstanding { count: 1, outstanding: 0 }));
    assert_eq!(grants.fill(CreditNumber(0), 0), Err(RingError::Empty));
    assert_eq!(spends.accept(CreditNumber(0), &[]), Err(RingError::Empty));
    assert_eq!(spends.available(), 0);
}

/// The state of a page in the model's pool.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Free,
    Credited,
    Live(usize),
    Quarantined,
}

#[derive(Clone, Debug)]
enum Op {
    /// The receiver grants as many credits as it can, and the sender accepts them.
    Grant,
    /// The sender posts a put for the request's next page.
    Put(usize),
    /// The oldest put in flight lands.
    Land,
    /// The sender announces the pages that have landed. The receiver adopts or frees them.
    Announce,
    /// The request is aborted.
    Abort(usize),
    /// The link breaks. Puts in flight stay in flight.
    Lose,
    /// Proof arrives: the puts of lost sessions have landed or never will.
    Prove,
}

/// One receiver, one sender, two requests.
struct World {
    pool: Vec<Use>,
    grants: GrantLedger,
    spends: SpendLedger,
    capacity: u32,
    /// Pages of each request that are reserved and have not landed. `None` if the request has ended.
    reserved: [Option<u32>; 2],
    /// Pages that each request still has to put.
    to_put: [u32; 2],
    /// Spent and unannounced credits of this session: request, page, whether the put has landed.
    posted: VecDeque<(usize, PageIndex, bool)>,
    /// Puts of lost sessions that may still land.
    late: Vec<PageIndex>,
    adopted: [u32; 2],
}

impl World {
    fn new(pages: usize, capacity: u32, needs: [u32; 2]) -> Self {
        let (grants, spends) = ring(capacity);
        let mut world = Self {
            pool: vec![Use::Free; pages],
            grants,
            spends,
            capacity,
            reserved: [None, None],
            to_put: [0, 0],
            posted: VecDeque::new(),
            late: Vec::new(),
            adopted: [0, 0],
        };
        for (request, &need) in needs.iter().enumerate() {
            if world.unclaimed() >= need {
                world.reserved[request] = Some(need);
                world.to_put[request] = need;
            }
        }
        world
    }

    fn count(&self, of: fn(&Use) -> bool) -> u32 {
        self.pool.iter().filter(|page| of(page)).count() as u32
    }

    fn unclaimed(&self) -> u32 {
        let reserved: u32 = self.reserved.iter().flatten().sum();
        self.count(|page| *page == Use::Free).saturating_sub(reserved)
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Grant => {
                while self.grants.room() > 0 && self.unclaimed() > 0 {
                    let at = self.pool.iter().position(|page| *page == Use::Free).expect("unclaimed > 0");
                    self.pool[at] = Use::Credited;
                    let credit = self.grants.grant(PageIndex(at as u32)).expect("room > 0");
                    self.spends
                        .accept(credit.number, &[credit.page])
                        .expect("granted in order, within the ring");
                }
            }
            Op::Put(request) => {
                if self.to_put[request] > 0
                    && let Some(credit) = self.spends.spend()
                {
                    self.to_put[request] -= 1;
                    self.posted.push_back((request, credit.page, false));
                }
            }
            Op::Land => {
                if let Some(page) = self.late.pop() {
                    assert_eq!(
                        self.pool[page.0 as usize],
                        Use::Quarantined,
                        "a late put wrote a page in use"
                    );
                } else if let Some(put) = self.posted.iter_mut().find(|put| !put.2) {
                    assert_eq!(
                        self.pool[put.1.0 as usize],
                        Use::Credited,
                        "a put wrote a page without a credit"
                    );
                    put.2 = true;
                }
            }
            Op::Announce => {
                while let Some(&(request, page, true)) = self.posted.front() {
                    self.posted.pop_front();
                    let first = self.spends.announce(1).expect("a posted put has spent its credit");
                    assert_eq!(self.grants.fill(first, 1), Ok(vec![page]));
                    self.pool[page.0 as usize] = match &mut self.reserved[request] {
                        Some(left) => {
                            *left -= 1;
                            self.adopted[request] += 1;
                            Use::Live(request)
                        }
                        None => Use::Free,
                    };
                }
            }
            Op::Abort(request) => {
                self.reserved[request] = None;
                for page in self.pool.iter_mut().filter(|page| **page == Use::Live(request)) {
                    *page = Use::Free;
                }
            }
            Op::Lose => {
                let (grants, spends) = ring(self.capacity);
                for page in std::mem::replace(&mut self.grants, grants).close() {
                    self.pool[page.0 as usize] = Use::Quarantined;
                }
                self.spends = spends;
                self.late.extend(self.posted.drain(..).filter(|put| !put.2).map(|put| put.1));
                for request in 0..2 {
                    self.apply(&Op::Abort(request));
                    self.to_put[request] = 0;
                }
            }
            Op::Prove => {
                self.late.clear();
                for page in self.pool.iter_mut().filter(|page| **page == Use::Quarantined) {
                    *page = Use::Free;
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.count(|page| *page == Use::Credited), self.grants.outstanding());
        assert!(self.grants.outstanding() <= self.capacity);
        let reserved: u32 = self.reserved.iter().flatten().sum();
        assert!(reserved <= self.count(|page| *page == Use::Free), "more pages are reserved than are free");
        assert_eq!(self.spends.available() + self.spends.unannounced(), self.grants.outstanding());
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Grant),
        6 => (0..2usize).prop_map(Op::Put),
        6 => Just(Op::Land),
        4 => Just(Op::Announce),
        1 => (0..2usize).prop_map(Op::Abort),
        1 => Just(Op::Lose),
        1 => Just(Op::Prove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// In any order of events, puts write only pages under a credit or in quarantine, and the reservations fit the pool.
    #[test]
    fn no_write_without_a_credit(
        (pages, capacity) in (1..12usize).prop_flat_map(|pages| (Just(pages), 1..=pages as u32)),
        needs in [0..8u32, 0..8u32],
        ops in vec(any_op(), 0..200),
    ) {
        let mut world = World::new(pages, capacity, needs);
        for op in &ops {
            world.apply(op);
        }
    }

    /// From any reachable state, the pages of all live requests arrive, also through a ring of one page.
    #[test]
    fn the_ring_always_makes_progress(
        capacity in 1..4u32,
        needs in [1..6u32, 1..6u32],
        ops in vec(any_op().prop_filter("the session stays up", |op| !matches!(op, Op::Lose)), 0..60),
    ) {
        let mut world = World::new(13, capacity, needs);
        for op in &ops {
            world.apply(op);
        }
        for _ in 0..64 {
            for op in [Op::Grant, Op::Put(0), Op::Put(1), Op::Land, Op::Announce] {
                world.apply(&op);
            }
        }
        prop_assert_eq!(world.to_put, [0, 0]);
        for (request, &need) in needs.iter().enumerate() {
            if world.reserved[request].is_some() {
                prop_assert_eq!(world.adopted[request], need);
            }
        }
    }
}
