//! Who wants how much, and how a batch is divided among them.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use super::handover::Handover;
use crate::domain::bounds::MAX_BATCH;
use crate::domain::{Delivery, Error, Timestamp};

/// The most messages of one read, but for a single subscriber who wants more.
const READ_COUNT: usize = 500;

/// The most bytes of one read.
const READ_BYTES: usize = 8 * 1024 * 1024;

/// What a message is taken to weigh in a queue of which nothing was read yet.
const UNKNOWN_BYTES: usize = 8 * 1024;

/// What a message weighs beside its texts.
const OVERHEAD_BYTES: usize = 256;

/// What a subscriber finds in its inbox.
pub(super) enum Item {
    /// Messages for it.
    Messages(Handover),
    /// For a subscriber that asked to be told: the queue had nothing for it when a read looked that began after its
    /// demand.
    Nothing,
    /// The subscription has ended.
    End(Error),
}

/// How a subscriber takes its messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// The most bytes of one handover.
    pub(super) piece_bytes: usize,
    /// It is told when there is nothing, and of every failure; others wait until the database is there again.
    pub(super) impatient: bool,
    /// The only incarnation of the queue that it reads; none for whichever is there.
    pub(super) queue_created_at: Option<Timestamp>,
}

struct Subscriber {
    manner: Manner,
    demand: usize,
    /// The number of reads that had begun when it demanded.
    since: u64,
    waiting: bool,
    inbox: mpsc::UnboundedSender<Item>,
}

/// What the next read should ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

/// The subscribers of one class of reads. Those with a demand stand in a line, and who was served goes to its end.
pub(super) struct Share {
    subscribers: HashMap<u64, Subscriber>,
    line: VecDeque<u64>,
    /// How many at most of the line have left altogether.
    left_in_line: usize,
    next_id: u64,
    reads: u64,
    whole: bool,
    /// The moving average of a message's weight.
    average_bytes: Option<usize>,
}

impl Share {
    /// Begins without subscribers. A batch is either divided, or given to one `whole`.
    pub(super) fn new(whole: bool) -> Self {
        Self {
            subscribers: HashMap::new(),
            line: VecDeque::new(),
            left_in_line: 0,
            next_id: 0,
            reads: 0,
            whole,
            average_bytes: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }

    pub(super) fn add(&mut self, manner: Manner, inbox: mpsc::UnboundedSender<Item>) -> u64 {
        self.next_id += 1;
        let subscriber = Subscriber { manner, demand: 0, since: 0, waiting: false, inbox };
        self.subscribers.insert(self.next_id, subscriber);
        self.next_id
    }

    pub(super) fn remove(&mut self, id: u64) {
        if self.subscribers.remove(&id).is_some_and(|subscriber| subscriber.waiting) {
            self.left_in_line += 1;
        }
        if self.left_in_line * 2 > self.line.len() {
            self.line.retain(|id| self.subscribers.contains_key(id));
            self.left_in_line = 0;
        }
    }

    /// Changes what a subscriber wants.
    pub(super) fn demand(&mut self, id: u64, count: usize) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else {
            return;
        };
        subscriber.demand = count;
        subscriber.since = self.reads;
        if count > 0 && !subscriber.waiting {
            subscriber.waiting = true;
            self.line.push_back(id);
        }
    }

    /// Whether anybody wants anything.
    pub(super) fn has_demand(&mut self) -> bool {
        self.forget_the_served();
        !self.line.is_empty()
    }

    /// What a read that begins now should ask for; none without a demand.
    pub(super) fn begin_read(&mut self) -> Option<Ask> {
        self.forget_the_served();
        let average = self.average_bytes.unwrap_or(UNKNOWN_BYTES).max(1);
        let (mut count, mut bytes) = (0, 0);
        for id in &self.line {
            let Some(subscriber) = self.subscribers.get(id).filter(|subscriber| subscriber.demand > 0) else {
                continue;
            };
            let piece = subscriber.manner.piece_bytes;
            // Who asks once gets all that it asked for if it fits, also from an unknown queue.
            let fitting = match subscriber.manner.impatient && self.average_bytes.is_none() {
                true => MAX_BATCH,
                false => (piece / average).max(1),
            };
            let wanted = subscriber.demand.min(fitting).min(MAX_BATCH);
            let too_much = count + wanted > READ_COUNT || (count + wanted) * average > READ_BYTES;
            if count > 0 && (self.whole || too_much) {
                break;
            }
            count += wanted;
            bytes += piece;
        }
        if count == 0 {
            return None;
        }
        self.reads += 1;
        Some(Ask { count, bytes: bytes.min(READ_BYTES) })
    }

    /// Learns what messages weigh.
    pub(super) fn weigh(&mut self, deliveries: &[Delivery]) {
        if deliveries.is_empty() {
            return;
        }
        let average = deliveries.iter().map(weight).sum::<usize>() / deliveries.len();
        self.average_bytes = Some(self.average_bytes.map_or(average, |before| (before * 3 + average) / 4));
    }

    /// Divides a batch among those who stand in the line; gives what is left.
    pub(super) fn divide(
        &mut self,
        mut batch: VecDeque<Delivery>,
        mut handover: impl FnMut(Vec<Delivery>) -> Handover,
    ) -> Vec<Delivery> {
        while !batch.is_empty() {
            self.forget_the_served();
            // So many messages can serve at most so many.
            let line: Vec<(u64, usize)> = self
                .line
                .iter()
                .filter_map(|id| Some((*id, self.subscribers.get(id)?.demand)))
                .filter(|(_, demand)| *demand > 0)
                .take(if self.whole { 1 } else { batch.len() })
                .collect();
            if line.is_empty() {
                break;
            }
            let demands: Vec<usize> = line.iter().map(|(_, demand)| *demand).collect();
            for ((id, _), count) in line.into_iter().zip(allotments(batch.len(), &demands)) {
                let Some(subscriber) = self.subscribers.get_mut(&id).filter(|_| count > 0) else {
                    continue;
                };
                let piece = take_piece(&mut batch, count, subscriber.manner.piece_bytes);
                if !piece.is_empty() {
                    // One demand, one handover: the subscriber says itself when it wants more.
                    subscriber.demand = 0;
                    // An inbox that is closed drops it, which gives it back.
                    let _ = subscriber.inbox.send(Item::Messages(handover(piece)));
                }
            }
            if self.whole {
                break;
            }
        }
        self.forget_the_served();
        batch.into()
    }

    /// Tells the impatient whose demand came before the last read that it found nothing for them.
    pub(super) fn tell_nothing(&mut self) {
        let reads = self.reads;
        for subscriber in self.subscribers.values_mut() {
            if subscriber.manner.impatient && subscriber.demand > 0 && subscriber.since < reads {
                let _ = subscriber.inbox.send(Item::Nothing);
            }
        }
    }

    /// Ends those who read another incarnation of the queue than the one that is there.
    pub(super) fn keep_incarnation(&mut self, created_at: Timestamp, gone: &Error) {
        self.end(gone, |manner| manner.queue_created_at.is_some_and(|expected| expected != created_at));
    }

    /// Ends the impatient ones.
    pub(super) fn fail_impatient(&mut self, error: &Error) {
        self.end(error, |manner| manner.impatient);
    }

    /// Ends all.
    pub(super) fn fail_all(&mut self, error: &Error) {
        self.end(error, |_| true);
    }

    fn end(&mut self, error: &Error, concerns: impl Fn(&Manner) -> bool) {
        self.subscribers.retain(|_, subscriber| {
            let ends = concerns(&subscriber.manner);
            if ends {
                let _ = subscriber.inbox.send(Item::End(error.clone()));
            }
            !ends
        });
        let subscribers = &self.subscribers;
        self.line.retain(|id| subscribers.contains_key(id));
        self.left_in_line = 0;
    }

    /// Those at the front of the line who want nothing any more leave it.
    fn forget_the_served(&mut self) {
        while let Some(id) = self.line.front() {
            match self.subscribers.get_mut(id) {
                Some(subscriber) if subscriber.demand > 0 => return,
                Some(subscriber) => subscriber.waiting = false,
                None => {}
            }
            self.line.pop_front();
        }
    }
}

/// What a message weighs in a reply.
fn weight(delivery: &Delivery) -> usize {
    delivery.message.text_bytes() + OVERHEAD_BYTES
}

/// Takes messages from the front: as many as fit, and at least one.
fn take_piece(batch: &mut VecDeque<Delivery>, count: usize, bytes: usize) -> Vec<Delivery> {
    let mut weights = 0;
    let fits = |delivery: &Delivery| {
        weights += weight(delivery);
        weights <= bytes
    };
    let fitting = batch.iter().take(count).map(fits).take_while(|fits| *fits).count();
    batch.drain(..fitting.max(1).min(batch.len())).collect()
}

/// Divides `count` things as evenly as demands allow.
fn allotments(count: usize, demands: &[usize]) -> Vec<usize> {
    let mut allotted = vec![0; demands.len()];
    let mut left = count;
    loop {
        let unsatisfied = allotted.iter().zip(demands).filter(|(has, wants)| has < wants).count();
        if left == 0 || unsatisfied == 0 {
            return allotted;
        }
        let each = (left / unsatisfied).max(1);
        for (has, wants) in allotted.iter_mut().zip(demands) {
            let more = each.min(wants - *has).min(left);
            *has += more;
            left -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use proptest::prelude::*;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::domain::{Message, QueueName, Receipt, Result};
    use crate::engine::Events;
    use crate::engine::dispatch::handover::Returns;
    use crate::engine::dispatch::source::{Session, Source};

    /// Nothing is given back here.
    struct Nowhere;

    impl Source for Nowhere {
        fn open<'a>(
            &'a self,
            _: &'static str,
            _: Option<&'a QueueName>,
        ) -> BoxFuture<'a, Result<Box<dyn Session>>> {
            async { Err(Error::draining()) }.boxed()
        }

        fn is_slow(&self, _: &'static str, _: &QueueName) -> bool {
            false
        }
    }

    fn delivery(msg_id: i64, bytes: usize) -> Delivery {
        let queue = QueueName::try_from("q".to_owned()).expect("a good name");
        let at = Timestamp::from_unix_micros(1);
        let receipt = Receipt::new(&queue, at, msg_id, 1, at, Some(at));
        let message = Some("x".repeat(bytes));
        let (last_read_at, headers) = (Some(at), None);
        let message = Message { msg_id, read_ct: 1, enqueued_at: at, last_read_at, vt: at, message, headers };
        Delivery { message, receipt }
    }

    /// A share among so many, and where each of them finds what it is given.
    struct Stage {
        share: Share,
        subscribers: Vec<(u64, mpsc::UnboundedReceiver<Item>)>,
    }

    fn among(count: usize, whole: bool, piece_bytes: usize) -> Stage {
        let mut share = Share::new(whole);
        let manner = Manner { piece_bytes, impatient: false, queue_created_at: None };
        let subscribers = (0..count).map(|_| {
            let (sender, inbox) = mpsc::unbounded_channel();
            (share.add(manner, sender), inbox)
        });
        let subscribers = subscribers.collect();
        Stage { share, subscribers }
    }

    impl Stage {
        fn demand(&mut self, index: usize, count: usize) {
            self.share.demand(self.subscribers[index].0, count);
        }

        /// Divides a batch: what each was given, and what is left.
        fn divide(&mut self, batch: Vec<Delivery>) -> (Vec<Vec<i64>>, Vec<i64>) {
            let returns = Returns::new(Arc::new(Nowhere), Events::default(), TaskTracker::new());
            let queue = QueueName::try_from("q".to_owned()).expect("a good name");
            let ids = |deliveries: &[Delivery]| -> Vec<i64> {
                deliveries.iter().map(|delivery| delivery.message.msg_id).collect()
            };
            let left = self.share.divide(batch.into(), |piece| Handover::new(&returns, &queue, piece));
            let given = self.subscribers.iter_mut().map(|(_, inbox)| {
                let mut given = Vec::new();
                while let Ok(Item::Messages(handover)) = inbox.try_recv() {
                    given.extend(ids(&handover.hand_over()));
                }
                given
            });
            (given.collect(), ids(&left))
        }
    }

    #[test]
    fn those_who_failed_leave_the_line() {
        let mut stage = among(1, false, 1 << 20);
        // The first of the line stays, so nobody behind it is forgotten by being passed over.
        stage.demand(0, 1);
        let hasty = Manner { piece_bytes: 1 << 20, impatient: true, queue_created_at: None };
        for _ in 0..10_000 {
            let (sender, mut inbox) = mpsc::unbounded_channel();
            let id = stage.share.add(hasty, sender);
            stage.share.demand(id, 1);
            stage.share.fail_impatient(&Error::draining());
            assert!(matches!(inbox.try_recv(), Ok(Item::End(_))));
            stage.share.remove(id);
        }
        assert_eq!(stage.share.line.len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled_and_nobody_gets_more_than_it_wants(
            demands in prop::collection::vec(0_usize..40, 1..20),
            sizes in prop::collection::vec(0_usize..3_000, 0..200),
            whole: bool,
            piece_bytes in 1_usize..20_000,
        ) {
            let mut stage = among(demands.len(), whole, piece_bytes);
            for (index, demand) in demands.iter().enumerate() {
                stage.demand(index, *demand);
            }
            let batch = (1..).zip(&sizes).map(|(msg_id, bytes)| delivery(msg_id, *bytes)).collect();
            let (given, left) = stage.divide(batch);
            for (given, demand) in given.iter().zip(&demands) {
                prop_assert!(given.len() <= *demand);
                prop_assert!(given.is_sorted());
                let bytes: usize = given.iter().map(|&id| sizes[usize::try_from(id).unwrap_or(0) - 1] + OVERHEAD_BYTES).sum();
                prop_assert!(given.len() <= 1 || bytes <= piece_bytes);
            }
            prop_assert!(!whole || given.iter().filter(|given| !given.is_empty()).count() <= 1);
            let mut all: Vec<i64> = given.concat();
            all.extend(&left);
            all.sort_unstable();
            let count = i64::try_from(sizes.len()).unwrap_or(0);
            prop_assert!(all.into_iter().eq(1..=count));
        }

        #[test]
        fn what_there_is_goes_evenly_to_those_who_want_it(
            count in 0_usize..500,
            demands in prop::collection::vec(0_usize..60, 1..30),
        ) {
            let allotted = allotments(count, &demands);
            prop_assert_eq!(allotted.iter().sum::<usize>(), count.min(demands.iter().sum()));
            let most = allotted.iter().copied().max().unwrap_or(0);
            for (has, wants) in allotted.iter().zip(&demands) {
                prop_assert!(has <= wants);
                prop_assert!(has == wants || has + 1 >= most, "{allotted:?} of {demands:?}");
            }
        }

        #[test]
        fn nobody_is_served_twice_while_another_waits(
            count in 1_usize..20,
            batches in prop::collection::vec(1_usize..30, 1..100),
        ) {
            let mut stage = among(count, false, 1 << 20);
            // How often each of the others was served since one began to wait.
            let mut passed_by = vec![vec![0; count]; count];
            for size in batches {
                // Who still stands in the line keeps its place.
                (0..count).for_each(|index| stage.demand(index, 1));
                let batch = (1..).take(size).map(|msg_id| delivery(msg_id, 1)).collect();
                let served: Vec<usize> = stage.divide(batch).0.iter().map(Vec::len).collect();
                prop_assert_eq!(served.iter().sum::<usize>(), size.min(count));
                for (waiting, passed_by) in passed_by.iter_mut().enumerate() {
                    for (passed_by, served_other) in passed_by.iter_mut().zip(&served) {
                        *passed_by = if served[waiting] > 0 { 0 } else { *passed_by + served_other };
                        prop_assert!(*passed_by <= 1, "{served:?}");
                    }
                }
            }
        }
    }
}
