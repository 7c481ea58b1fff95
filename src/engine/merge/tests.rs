//! Mergers with flushes that are made up, in virtual time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, sleep, sleep_until};

use super::*;

/// What the flushes saw.
#[derive(Default)]
struct Seen {
    flushes: Mutex<Vec<(Instant, Vec<i64>)>>,
}

/// Items below zero spoil a flush. An item's verdict is itself.
struct Slow {
    seen: Arc<Seen>,
    /// How long a flush takes.
    takes: Duration,
    fails_to_open: bool,
}

const FLUSH: Duration = Duration::from_millis(10);

/// An item whose flush fails for what concerns everybody.
const FOR_ALL: i64 = i64::MIN;

struct Batch(Vec<i64>);

impl Load for Batch {
    fn items(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        100 * self.0.len()
    }
}

impl Merge for Slow {
    type Lane = &'static str;
    type Load = Batch;
    type Answer = Vec<Result<i64>>;
    type Open = ();
    /// No two equal items go together.
    type Picked = HashSet<i64>;

    fn goes_with(picked: &mut HashSet<i64>, load: &Batch) -> bool {
        let is_new = !load.0.iter().any(|item| picked.contains(item));
        picked.extend(&load.0);
        is_new
    }

    async fn open(&self, _: &&'static str) -> Result<()> {
        match self.fails_to_open {
            true => Err(Error::new(Kind::DatabaseUnavailable, "down")),
            false => Ok(()),
        }
    }

    async fn flush(
        &self,
        _: &&'static str,
        (): (),
        parcels: Vec<Parcel<Batch, Vec<Result<i64>>>>,
    ) -> Option<Error> {
        sleep(self.takes).await;
        let items: Vec<i64> = parcels.iter().flat_map(|parcel| parcel.load.0.clone()).collect();
        if items.contains(&FOR_ALL) {
            let error = Error::new(Kind::QueueBusy, "locked");
            parcels.into_iter().for_each(|parcel| parcel.answer(Err(error.clone())));
            return Some(error);
        }
        assert!(!items.contains(&i64::MAX), "a panic on purpose");
        self.seen
            .flushes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((Instant::now(), items.clone()));
        let mut verdicts = bisect(&items, &mut Spoilt::default()).await.into_iter();
        for parcel in parcels {
            let verdict = verdicts.by_ref().take(parcel.load.0.len()).collect();
            parcel.answer(Ok(verdict));
        }
        None
    }
}

/// Fails as a whole if an item is below zero.
#[derive(Default)]
struct Spoilt {
    attempts: usize,
    stored: Vec<i64>,
}

impl Attempt<i64> for Spoilt {
    type Output = i64;

    async fn attempt(&mut self, items: &[i64]) -> Result<Vec<i64>, Failure> {
        self.attempts += 1;
        let fail = |blame| Err(Failure { error: Error::new(Kind::Internal, "spoilt"), blame });
        match items.iter().find(|item| **item < 0) {
            Some(-1_000_000) => fail(Blame::All),
            Some(-2_000_000) => fail(Blame::Collision),
            Some(_) => fail(Blame::Item),
            None => {
                self.stored.extend(items);
                Ok(items.to_vec())
            }
        }
    }
}

const BOUNDS: Bounds = Bounds { items: 100_000, bytes: 100_000_000 };

fn merger(bounds: Bounds) -> (Merger<Slow>, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let merge = Slow { seen: Arc::clone(&seen), takes: FLUSH, fails_to_open: false };
    (Merger::new(merge, bounds, TaskTracker::new(), Parked::default()), seen)
}

fn flushed(seen: &Seen) -> Vec<Vec<i64>> {
    let flushes = seen.flushes.lock().unwrap_or_else(PoisonError::into_inner);
    flushes.iter().map(|(_, items)| items.clone()).collect()
}

fn only(sent: Result<Vec<Result<i64>>>) -> i64 {
    let mut sent = sent.expect("a verdict");
    sent.pop().expect("an item").expect("a good item")
}

#[tokio::test(start_paused = true)]
async fn a_lone_item_waits_for_nothing_but_its_own_flush() {
    let (merger, _) = merger(BOUNDS);
    let begun = Instant::now();
    assert_eq!(only(merger.submit("a", Batch(vec![7])).expect("a place").wait().await), 7);
    assert_eq!(begun.elapsed(), FLUSH);
    assert_eq!(merger.load(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_comes_during_a_flush_goes_with_the_next() {
    let (merger, seen) = merger(BOUNDS);
    let first = merger.submit("a", Batch(vec![0])).expect("a place");
    sleep(FLUSH / 2).await;
    let later: Vec<_> =
        (1..=50).map(|item| merger.submit("a", Batch(vec![item])).expect("a place")).collect();
    assert_eq!(only(first.wait().await), 0);
    for (item, verdict) in (1..).zip(later) {
        assert_eq!(only(verdict.wait().await), item);
    }
    assert_eq!(flushed(&seen), [vec![0], (1..=50).collect()]);
}

#[tokio::test(start_paused = true)]
async fn lanes_do_not_wait_for_each_other() {
    let (merger, _) = merger(BOUNDS);
    let begun = Instant::now();
    let lanes = ["a", "b", "c"].map(|lane| merger.submit(lane, Batch(vec![1])).expect("a place"));
    for verdict in lanes {
        assert_eq!(only(verdict.wait().await), 1);
    }
    assert_eq!(begun.elapsed(), FLUSH);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_left_before_the_flush_sends_nothing() {
    let (merger, seen) = merger(BOUNDS);
    let first = merger.submit("a", Batch(vec![0])).expect("a place");
    sleep(FLUSH / 2).await;
    drop(merger.submit("a", Batch(vec![1])).expect("a place"));
    let last = merger.submit("a", Batch(vec![2])).expect("a place");
    drop(first);
    assert_eq!(only(last.wait().await), 2);
    // The first had been handed over when its caller left.
    assert_eq!(flushed(&seen), [vec![0], vec![2]]);
    assert_eq!(merger.load().0, 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_go_together_waits_for_the_next_flush_in_order() {
    let (merger, seen) = merger(BOUNDS);
    let first = merger.submit("a", Batch(vec![0])).expect("a place");
    sleep(FLUSH / 2).await;
    let items = [[1, 2], [2, 3], [3, 4], [5, 6]];
    let verdicts = items.map(|items| merger.submit("a", Batch(items.to_vec())).expect("a place"));
    assert_eq!(only(first.wait().await), 0);
    for verdict in verdicts {
        assert_eq!(verdict.wait().await.expect("verdicts").len(), 2);
    }
    // The third is passed over with the second, or it would overtake it.
    assert_eq!(flushed(&seen), [vec![0], vec![1, 2, 5, 6], vec![2, 3], vec![3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_looks_no_further_than_past_so_many_parcels() {
    let (merger, seen) = merger(BOUNDS);
    let alike = 2 * MAX_PASSED_OVER;
    let mut verdicts: Vec<_> =
        (0..alike).map(|_| merger.submit("a", Batch(vec![7])).expect("a place")).collect();
    verdicts.push(merger.submit("a", Batch(vec![8])).expect("a place"));
    for verdict in verdicts {
        only(verdict.wait().await);
    }
    let flushed = flushed(&seen);
    // One of those alike goes with each flush; the other one goes as soon as few enough of them are before it.
    assert_eq!(flushed.len(), alike);
    let place = flushed.iter().position(|items| items.contains(&8)).expect("a flush");
    assert_eq!((place, &flushed[place][..]), (alike - MAX_PASSED_OVER, &[7, 8][..]));
    assert_eq!(merger.load(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bounds_callers_are_refused_at_once() {
    let (merger, seen) = merger(Bounds { items: 8, bytes: 100_000 });
    let flying = merger.submit("a", Batch(vec![0])).expect("a place");
    sleep(FLUSH / 2).await;
    let waiting: Vec<_> =
        (1..=4).map(|item| merger.submit("a", Batch(vec![item])).expect("a place")).collect();
    let begun = Instant::now();
    let refused = merger.submit("a", Batch(vec![99])).expect_err("a refusal");
    assert_eq!((refused.kind(), refused.retry_delay().is_some()), (Kind::Overloaded, true));
    // Another lane has its own half, and no more.
    let other: Vec<_> = (1..=4).map(|item| merger.submit("b", Batch(vec![item])).expect("a place")).collect();
    assert_eq!(merger.submit("c", Batch(vec![99])).expect_err("a refusal").kind(), Kind::Overloaded);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    for verdict in waiting.into_iter().chain(other).chain([flying]) {
        only(verdict.wait().await);
    }
    assert_eq!(flushed(&seen).into_iter().flatten().filter(|item| *item == 99).count(), 0);
    assert_eq!(merger.load(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_gets_it_with_the_next_flush() {
    let (merger, _) = merger(Bounds { items: 8, bytes: 100_000 });
    let first = merger.submit("a", Batch(vec![0])).expect("a place");
    sleep(FLUSH / 2).await;
    let full: Vec<_> = (1..=4).map(|item| merger.submit("a", Batch(vec![item])).expect("a place")).collect();
    let begun = Instant::now();
    let patient = merger.submit_when_room("a", Batch(vec![5])).await;
    assert_eq!(begun.elapsed(), FLUSH / 2);
    assert_eq!(only(patient.wait().await), 5);
    for verdict in full.into_iter().chain([first]) {
        only(verdict.wait().await);
    }
}

/// Sends again and again until a moment: how long the accepted ones took and how many were refused, of those handed in
/// after another moment.
async fn send_on(
    merger: Arc<Merger<Slow>>,
    number: i64,
    counts: Instant,
    ends: Instant,
) -> (Vec<Duration>, usize) {
    let (mut took, mut refused) = (Vec::new(), 0);
    for round in 0.. {
        let begun = Instant::now();
        if begun >= ends {
            break;
        }
        match merger.submit("a", Batch(vec![number + round * 1_000_000])) {
            Ok(verdict) => {
                only(verdict.wait().await);
                if begun >= counts {
                    took.push(begun.elapsed());
                }
            }
            Err(error) => {
                assert_eq!((error.kind(), begun.elapsed()), (Kind::Overloaded, Duration::ZERO));
                refused += usize::from(begun >= counts);
                sleep(error.retry_delay().expect("a delay")).await;
            }
        }
    }
    (took, refused)
}

#[tokio::test(start_paused = true)]
async fn ten_times_the_callers_that_fill_a_lane_do_not_wait_longer_for_it_in_a_minute() {
    const TAKES: Duration = Duration::from_millis(100);
    const MINUTE: Duration = Duration::from_mins(1);
    let merge = Slow { seen: Arc::default(), takes: TAKES, fails_to_open: false };
    let merger = Arc::new(Merger::new(merge, BOUNDS, TaskTracker::new(), Parked::default()));
    // All of them are a burst at first, which is done by then.
    let counts = Instant::now() + Duration::from_secs(3);
    let ends = counts + MINUTE;
    let callers = 10 * MAX_FLUSH_ITEMS;
    let calling: Vec<_> = (0..callers as i64)
        .map(|number| tokio::spawn(send_on(Arc::clone(&merger), number, counts, ends)))
        .collect();
    let mut most = Line::default();
    for look in 0_u32.. {
        sleep_until(counts + TAKES / 7 * look).await;
        if Instant::now() >= ends {
            break;
        }
        let line = merger.line();
        assert_eq!((line.lanes, line.refusing_lanes), (1, 1));
        (most.items, most.bytes) = (most.items.max(line.items), most.bytes.max(line.bytes));
    }
    // What waits is never more than the next flush takes.
    assert_eq!(most.items, MAX_FLUSH_ITEMS);
    assert_eq!(most.bytes, 100 * MAX_FLUSH_ITEMS);
    let (mut took, mut refused) = (Vec::new(), 0);
    for caller in calling {
        let (its, of_it) = caller.await.expect("a caller");
        took.extend(its);
        refused += of_it;
    }
    // A flush at a time, each as full as it can be.
    let flushes = (MINUTE.as_millis() / TAKES.as_millis()) as usize;
    assert!(took.len() * 100 > flushes * MAX_FLUSH_ITEMS * 95, "only {} were sent", took.len());
    assert!(took.iter().all(|took| *took <= 2 * TAKES), "{:?}", took.iter().max());
    // The other nine thousand, less often than once a second each.
    assert!((callers..callers * 60).contains(&refused), "{refused} were refused");
    assert_eq!(merger.load(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_let_in_whole() {
    let (merger, _) = merger(BOUNDS);
    let burst: Vec<_> =
        (0..20_000).map(|item| merger.submit("a", Batch(vec![item])).expect("a place")).collect();
    for (item, verdict) in (0..).zip(burst) {
        assert_eq!(only(verdict.wait().await), item);
    }
}

#[tokio::test(start_paused = true)]
async fn the_patient_leave_places_to_the_others() {
    let (merger, _) = merger(BOUNDS);
    let merger = Arc::new(merger);
    let first = merger.submit("a", Batch(vec![0])).expect("a place");
    sleep(FLUSH / 2).await;
    let patient: Vec<_> = (1..=20_i64)
        .map(|number| {
            let merger = Arc::clone(&merger);
            let items = (number * 1_000..number * 1_000 + 1_000).collect();
            tokio::spawn(async move { merger.submit_when_room("a", Batch(items)).await.wait().await })
        })
        .collect();
    sleep(FLUSH / 4).await;
    assert_eq!(merger.load().0, 2_000);
    // Behind two flushes at most.
    let begun = Instant::now();
    assert_eq!(only(merger.submit("a", Batch(vec![1])).expect("a place").wait().await), 1);
    assert!(begun.elapsed() <= 4 * FLUSH, "{:?}", begun.elapsed());
    only(first.wait().await);
    for patient in patient {
        assert_eq!(patient.await.expect("a caller").expect("verdicts").len(), 1_000);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_parked_until_they_are_answered_and_streams_are_not() {
    let (parked, seen) = (Parked::default(), Arc::default());
    let merge = Slow { seen, takes: FLUSH, fails_to_open: false };
    let merger = Merger::new(merge, BOUNDS, TaskTracker::new(), parked.clone());
    let first = merger.submit("a", Batch(vec![1])).expect("a place");
    let of_a_stream = merger.submit_when_room("a", Batch(vec![2])).await;
    let second = merger.submit("a", Batch(vec![3])).expect("a place");
    assert_eq!(parked.count(), 2);
    sleep(FLUSH * 3).await;
    // Nobody has taken the verdicts yet.
    assert_eq!(parked.count(), 0);
    for verdict in [first, of_a_stream, second] {
        verdict.wait().await.expect("a verdict");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_is_parked_no_more() {
    let (parked, seen) = (Parked::default(), Arc::default());
    let merge = Slow { seen, takes: FLUSH, fails_to_open: false };
    let merger = Merger::new(merge, BOUNDS, TaskTracker::new(), parked.clone());
    let flushed = merger.submit("a", Batch(vec![1])).expect("a place");
    sleep(FLUSH / 2).await;
    let waiting = merger.submit("a", Batch(vec![2])).expect("a place");
    let unheard = merger.submit("a", Batch(vec![3])).expect("a place");
    assert_eq!(parked.count(), 3);
    drop((flushed, waiting));
    assert_eq!(parked.count(), 1);
    sleep(FLUSH * 3).await;
    assert_eq!(parked.count(), 0);
    drop(unheard);
    assert_eq!(parked.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_opened_fails_for_all_that_wait() {
    let merge = Slow { seen: Arc::default(), takes: FLUSH, fails_to_open: true };
    let merger = Merger::new(merge, BOUNDS, TaskTracker::new(), Parked::default());
    let verdicts = [1, 2].map(|item| merger.submit("a", Batch(vec![item])).expect("a place"));
    for verdict in verdicts {
        assert_eq!(verdict.wait().await.expect_err("a refusal").kind(), Kind::DatabaseUnavailable);
    }
    assert_eq!(merger.load(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_concerns_everybody_is_heard_at_once_by_all_who_wait() {
    let (merger, seen) = merger(BOUNDS);
    let begun = Instant::now();
    let first = merger.submit("a", Batch(vec![FOR_ALL])).expect("a place");
    sleep(FLUSH / 2).await;
    let later = merger.submit("a", Batch(vec![1])).expect("a place");
    let stranger = merger.submit("b", Batch(vec![2])).expect("a place");
    for verdict in [first, later] {
        assert_eq!(verdict.wait().await.expect_err("a refusal").kind(), Kind::QueueBusy);
        assert_eq!(begun.elapsed(), FLUSH);
    }
    assert_eq!(only(stranger.wait().await), 2);
    assert_eq!(only(merger.submit("a", Batch(vec![3])).expect("a place").wait().await), 3);
    assert_eq!((flushed(&seen), merger.load()), (vec![vec![2], vec![3]], (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_lane_survives_a_panic() {
    let (merger, _) = merger(BOUNDS);
    let doomed = merger.submit("a", Batch(vec![i64::MAX])).expect("a place");
    assert_eq!(doomed.wait().await.expect_err("a refusal").kind(), Kind::Internal);
    assert_eq!(only(merger.submit("a", Batch(vec![1])).expect("a place").wait().await), 1);
}

#[tokio::test]
async fn bad_items_are_found_and_the_others_stored_in_order() {
    let mut spoilt = Spoilt::default();
    let items: Vec<i64> = (0..512).map(|item| if item == 77 || item == 300 { -1 } else { item }).collect();
    let verdicts = bisect(&items, &mut spoilt).await;
    let bad: Vec<usize> = (0..512).filter(|&place| verdicts[place].is_err()).collect();
    assert_eq!(bad, [77, 300]);
    assert_eq!(spoilt.stored, items.iter().copied().filter(|item| *item >= 0).collect::<Vec<_>>());
    assert!(spoilt.attempts < 40, "{} attempts", spoilt.attempts);
}

#[tokio::test]
async fn what_is_nobodys_fault_is_tried_once_and_collisions_three_times() {
    for (item, attempts) in [(-1_000_000, 1), (-2_000_000, 3)] {
        let mut spoilt = Spoilt::default();
        let verdicts = bisect(&[1, item, 3], &mut spoilt).await;
        assert!(verdicts.iter().all(Result::is_err));
        assert_eq!(spoilt.attempts, attempts);
    }
}

/// What a caller does: the lane, its items, and how long it waits before it comes and until it leaves.
#[derive(Debug, Clone)]
struct Caller {
    lane: &'static str,
    items: Vec<i64>,
    comes_after_ms: u64,
    leaves_after_ms: Option<u64>,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let caller = (
        prop::sample::select(vec!["a", "b"]),
        1_usize..700,
        0_u64..60,
        prop::option::weighted(0.2, 0_u64..30),
    );
    prop::collection::vec(caller, 1..60).prop_map(|callers| {
        let mut next = 0;
        let numbered = callers.into_iter().map(|(lane, count, comes_after_ms, leaves_after_ms)| {
            let first = next;
            next += i64::try_from(count).expect("a count");
            // Every 97th item is a bad one.
            let items = (first..next).map(|item| if item % 97 == 5 { -item } else { item }).collect();
            Caller { lane, items, comes_after_ms, leaves_after_ms }
        });
        numbered.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_parcel_gets_its_own_verdicts_and_order_is_kept(callers in callers()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async move {
            let (merger, seen) = merger(BOUNDS);
            let merger = Arc::new(merger);
            let order: Arc<Mutex<Vec<(&'static str, i64)>>> = Arc::default();
            let tasks: Vec<_> = callers.iter().cloned().map(|caller| {
                let (merger, order) = (Arc::clone(&merger), Arc::clone(&order));
                tokio::spawn(async move {
                    sleep(Duration::from_millis(caller.comes_after_ms)).await;
                    let verdict = {
                        order.lock().expect("the order").extend(caller.items.iter().map(|item| (caller.lane, *item)));
                        merger.submit(caller.lane, Batch(caller.items.clone())).expect("a place")
                    };
                    let patience = Duration::from_millis(caller.leaves_after_ms.unwrap_or(1_000_000));
                    let Ok(sent) = tokio::time::timeout(patience, verdict.wait()).await else {
                        return;
                    };
                    let sent = sent.expect("verdicts");
                    assert_eq!(sent.len(), caller.items.len());
                    for (item, sent) in caller.items.iter().zip(sent) {
                        assert_eq!(sent.ok(), Some(*item).filter(|item| *item >= 0));
                    }
                })
            }).collect();
            for task in tasks {
                task.await.expect("a caller without a panic");
            }
            while merger.load().1 > 0 {
                sleep(FLUSH).await;
            }
            assert_eq!(merger.load(), (0, 0));
            let flushes = flushed(&seen);
            // Each item at most once, none invented, all of those who stayed, and each lane in the order of its parcels.
            let flat: Vec<i64> = flushes.iter().flatten().copied().collect();
            let distinct: HashSet<i64> = flat.iter().copied().collect();
            assert_eq!(distinct.len(), flat.len());
            for caller in callers.iter().filter(|caller| caller.leaves_after_ms.is_none()) {
                assert!(caller.items.iter().all(|item| distinct.contains(item)));
            }
            let order = order.lock().expect("the order");
            for lane in ["a", "b"] {
                let places: HashMap<i64, usize> =
                    order.iter().filter(|(of, _)| *of == lane).enumerate().map(|(place, (_, item))| (*item, place)).collect();
                let of_lane: Vec<usize> = flat.iter().filter_map(|item| places.get(item).copied()).collect();
                assert!(of_lane.is_sorted());
            }
            for flush in &flushes {
                assert!(flush.len() <= MAX_FLUSH_ITEMS);
            }
        });
    }
}
