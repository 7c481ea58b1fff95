//! The settles of one stream: many commands in one bundle, and never two about one message at a time.
//!
//! A bundle comes back at once with what can be told. A command of whose messages others have locked some then goes on
//! alone, and holds up nothing but commands about those messages. A bundle that fails because of one of its messages is
//! tried by halves, so that each command has the verdict that it would have alone.

use std::collections::{HashSet, VecDeque};

use crate::domain::message::ItemResult;
use crate::domain::{Error, Receipt, Result};
use crate::pg::may_be_one_items_fault;
use crate::queue::{Change, Told};

/// The most receipts of one bundle. A command has at most as many.
const MAX_BUNDLE: usize = 1_000;

/// The most bundles of one stream at the database; what comes meanwhile makes the next ones larger.
const MAX_BUNDLES: usize = 4;

/// One `settle` or `extend`.
#[derive(Debug)]
pub struct Settle {
    /// The client's number for it.
    pub request_id: u64,
    /// Which deliveries.
    pub receipts: Vec<Receipt>,
    /// What becomes of them.
    pub change: Change,
}

/// What became of one `settle` or `extend`.
#[derive(Debug)]
pub struct CommandResult {
    /// The client's number for it.
    pub request_id: u64,
    /// One result a receipt, or why there are none.
    pub results: Result<Vec<ItemResult>>,
}

/// Whose a bundle is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// The client's: its commands with their numbers of receipts.
    Commands(Vec<(u64, usize)>),
    /// The server's own, which keeps messages hidden.
    AutoExtend,
}

/// Receipts with which the same is to be done.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) change: Change,
    pub(super) receipts: Vec<Receipt>,
    pub(super) sender: Sender,
}

impl Bundle {
    /// Whether it is more than one command, or several messages of the server's own.
    fn can_be_halved(&self) -> bool {
        match &self.sender {
            Sender::Commands(commands) => commands.len() > 1,
            Sender::AutoExtend => self.receipts.len() > 1,
        }
    }

    /// Takes the second half off.
    fn split_off(&mut self) -> Self {
        let (first, sender) = match &mut self.sender {
            Sender::Commands(commands) => {
                let second = commands.split_off(commands.len() / 2);
                (commands.iter().map(|(_, count)| count).sum(), Sender::Commands(second))
            }
            Sender::AutoExtend => (self.receipts.len() / 2, Sender::AutoExtend),
        };
        Self { change: self.change.clone(), receipts: self.receipts.split_off(first), sender }
    }
}

/// A command of whose messages others have locked some.
#[derive(Debug)]
pub(super) struct Locked {
    pub(super) settle: Settle,
    /// What is told of its messages already.
    pub(super) told: Told,
}

impl Locked {
    /// The deliveries of the locked messages.
    pub(super) fn receipts(&self) -> impl Iterator<Item = Receipt> {
        let all = self.settle.receipts.iter().zip(&self.told);
        all.filter(|(_, told)| told.is_none()).map(|(receipt, _)| *receipt)
    }
}

/// What one stream's client wants settled, and what of it is at the database.
#[derive(Debug, Default)]
pub(super) struct Settles {
    waiting: VecDeque<Settle>,
    /// The messages that bundles at the database are about, and those that are locked.
    busy: HashSet<i64>,
    bundles: usize,
    commands: usize,
    receipts: usize,
}

impl Settles {
    /// Takes a command.
    pub(super) fn push(&mut self, settle: Settle) {
        self.commands += 1;
        self.receipts += settle.receipts.len();
        self.waiting.push_back(settle);
    }

    /// How many commands have no result yet.
    pub(super) fn commands(&self) -> usize {
        self.commands
    }

    /// How many receipts these have.
    pub(super) fn receipts(&self) -> usize {
        self.receipts
    }

    /// The messages that commands without a result are about.
    pub(super) fn pending(&self) -> HashSet<i64> {
        let waiting = self.waiting.iter().flat_map(|settle| &settle.receipts).map(Receipt::msg_id);
        self.busy.iter().copied().chain(waiting).collect()
    }

    /// Notes an own bundle, so that the client's settles of its messages wait for it.
    pub(super) fn send_own(&mut self, bundle: &Bundle) {
        self.busy.extend(bundle.receipts.iter().map(Receipt::msg_id));
    }

    /// What can go to the database now: commands that want the same go together. One that is about a message of an
    /// earlier one waits until that is done.
    pub(super) fn next_bundles(&mut self) -> Vec<Bundle> {
        if self.waiting.is_empty() || self.bundles >= MAX_BUNDLES {
            return Vec::new();
        }
        let mut bundles: Vec<Bundle> = Vec::new();
        let mut left = VecDeque::new();
        let mut blocked: HashSet<i64> = HashSet::new();
        while let Some(settle) = self.waiting.pop_front() {
            let mut msg_ids = settle.receipts.iter().map(Receipt::msg_id);
            if msg_ids.any(|msg_id| self.busy.contains(&msg_id) || blocked.contains(&msg_id)) {
                blocked.extend(settle.receipts.iter().map(Receipt::msg_id));
                left.push_back(settle);
                continue;
            }
            let room = MAX_BUNDLE.saturating_sub(settle.receipts.len());
            let place = bundles
                .iter()
                .position(|bundle| bundle.change == settle.change && bundle.receipts.len() <= room);
            if place.is_none() && self.bundles + bundles.len() >= MAX_BUNDLES {
                left.push_back(settle);
                break;
            }
            self.busy.extend(settle.receipts.iter().map(Receipt::msg_id));
            let command = (settle.request_id, settle.receipts.len());
            match place.and_then(|place| bundles.get_mut(place)) {
                Some(bundle) => {
                    bundle.receipts.extend(settle.receipts);
                    if let Sender::Commands(commands) = &mut bundle.sender {
                        commands.push(command);
                    }
                }
                None => bundles.push(Bundle {
                    change: settle.change,
                    receipts: settle.receipts,
                    sender: Sender::Commands(vec![command]),
                }),
            }
        }
        while let Some(settle) = left.pop_back() {
            self.waiting.push_front(settle);
        }
        self.bundles += bundles.len();
        bundles
    }

    /// The halves of a bundle that came back because of an error, if it may be the fault of a part: nothing of it was
    /// applied, and they are to be sent.
    pub(super) fn halves(&mut self, mut bundle: Bundle, error: &Error) -> Result<[Bundle; 2], Bundle> {
        if !bundle.can_be_halved() || !may_be_one_items_fault(error) {
            return Err(bundle);
        }
        let second = bundle.split_off();
        self.bundles += usize::from(bundle.sender != Sender::AutoExtend);
        Ok([bundle, second])
    }

    /// Notes that a bundle came back, and gives each of its commands its own result, or what is told of it while others
    /// have locked the rest.
    pub(super) fn done(&mut self, bundle: &Bundle, told: &Result<Told>) -> (Vec<CommandResult>, Vec<Locked>) {
        for receipt in &bundle.receipts {
            self.busy.remove(&receipt.msg_id());
        }
        let (mut answered, mut locked) = (Vec::new(), Vec::new());
        let Sender::Commands(commands) = &bundle.sender else {
            return (answered, locked);
        };
        self.bundles -= 1;
        let mut begins = 0;
        for &(request_id, count) in commands {
            let own = begins..begins + count;
            begins = own.end;
            let told = match told {
                Ok(told) => told.get(own.clone()).ok_or_else(miscounted),
                Err(error) => Err(error.clone()),
            };
            match told {
                Ok(told) if told.iter().any(Option::is_none) => {
                    let (receipts, change) = (bundle.receipts[own].to_vec(), bundle.change.clone());
                    let settle = Settle { request_id, receipts, change };
                    let rest = Locked { settle, told: told.to_vec() };
                    self.busy.extend(rest.receipts().map(|receipt| receipt.msg_id()));
                    locked.push(rest);
                }
                told => {
                    let results = told.map(|told| told.iter().copied().flatten().collect());
                    answered.push(self.answer(request_id, count, results));
                }
            }
        }
        (answered, locked)
    }

    /// Notes that a command waits for locked messages no more, and gives it its result.
    pub(super) fn unlocked(&mut self, locked: &Locked, results: Result<Vec<ItemResult>>) -> CommandResult {
        for receipt in locked.receipts() {
            self.busy.remove(&receipt.msg_id());
        }
        self.answer(locked.settle.request_id, locked.settle.receipts.len(), results)
    }

    fn answer(
        &mut self,
        request_id: u64,
        receipts: usize,
        results: Result<Vec<ItemResult>>,
    ) -> CommandResult {
        self.commands -= 1;
        self.receipts -= receipts;
        CommandResult { request_id, results }
    }
}

fn miscounted() -> Error {
    Error::internal("a bundle's results do not match its receipts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::Outcome;
    use crate::domain::{Kind, QueueName, Settlement, Timestamp};

    fn settle(request_id: u64, msg_ids: &[i64], change: Change) -> Settle {
        let queue = QueueName::try_from("q".to_owned()).expect("a good name");
        let at = Timestamp::from_unix_micros(1);
        let receipts = msg_ids.iter().map(|&msg_id| Receipt::new(&queue, at, msg_id, 1, at, Some(at)));
        Settle { request_id, receipts: receipts.collect(), change }
    }

    fn msg_ids(bundle: &Bundle) -> Vec<i64> {
        bundle.receipts.iter().map(Receipt::msg_id).collect()
    }

    fn result(outcome: Outcome) -> ItemResult {
        ItemResult { outcome, vt: None }
    }

    fn outcomes(outcomes: &[Outcome]) -> Result<Told> {
        Ok(outcomes.iter().map(|&outcome| Some(result(outcome))).collect())
    }

    fn answers(results: Vec<CommandResult>) -> Vec<(u64, Vec<Outcome>)> {
        let answer = |result: CommandResult| {
            let results = result.results.expect("results");
            (result.request_id, results.iter().map(|item| item.outcome).collect())
        };
        results.into_iter().map(answer).collect()
    }

    #[test]
    fn commands_that_want_the_same_go_together_and_get_their_own_results() {
        let mut settles = Settles::default();
        settles.push(settle(7, &[1, 2], Change::Delete));
        settles.push(settle(8, &[3], Change::Archive));
        settles.push(settle(9, &[4], Change::Delete));
        let bundles = settles.next_bundles();
        assert_eq!(bundles.iter().map(msg_ids).collect::<Vec<_>>(), [vec![1, 2, 4], vec![3]]);
        assert_eq!((settles.commands(), settles.receipts()), (3, 4));

        let told = outcomes(&[Outcome::Done, Outcome::Stale, Outcome::NotFound]);
        let (results, locked) = settles.done(&bundles[0], &told);
        let expected = [(7, vec![Outcome::Done, Outcome::Stale]), (9, vec![Outcome::NotFound])];
        assert_eq!(answers(results), expected);
        assert!(locked.is_empty());
        assert_eq!((settles.commands(), settles.receipts()), (1, 1));
    }

    #[test]
    fn commands_about_one_message_keep_their_order() {
        let mut settles = Settles::default();
        settles.push(settle(1, &[5], Change::Reschedule(Settlement::HiddenForMillis(1_000))));
        settles.push(settle(2, &[5, 6], Change::Release { delay_ms: Some(0) }));
        settles.push(settle(3, &[6], Change::Delete));
        settles.push(settle(4, &[7], Change::Delete));
        let first = settles.next_bundles();
        assert_eq!(first.iter().map(msg_ids).collect::<Vec<_>>(), [vec![5], vec![7]]);
        assert!(settles.next_bundles().is_empty());

        settles.done(&first[0], &outcomes(&[Outcome::Done]));
        let second = settles.next_bundles();
        assert_eq!(second.iter().map(msg_ids).collect::<Vec<_>>(), [vec![5, 6]]);
        settles.done(&second[0], &outcomes(&[Outcome::Done, Outcome::Done]));
        assert_eq!(settles.next_bundles().iter().map(msg_ids).collect::<Vec<_>>(), [vec![6]]);
    }

    #[test]
    fn a_settle_waits_for_the_servers_own_extend_of_its_message() {
        let mut settles = Settles::default();
        let own = settle(0, &[5], Change::Reschedule(Settlement::HiddenForMillis(1_000)));
        let own = Bundle { change: own.change, receipts: own.receipts, sender: Sender::AutoExtend };
        settles.send_own(&own);
        settles.push(settle(1, &[5], Change::Release { delay_ms: Some(0) }));
        assert!(settles.next_bundles().is_empty());
        assert_eq!(settles.pending(), HashSet::from([5]));
        // One that is locked is waited for no longer than one that is not.
        let (results, locked) = settles.done(&own, &Ok(vec![None]));
        assert!(results.is_empty() && locked.is_empty());
        assert!(settles.pending().contains(&5), "the client's own");
        assert_eq!(settles.next_bundles().len(), 1);
    }

    #[test]
    fn what_is_too_much_for_the_database_gathers() {
        let mut settles = Settles::default();
        for number in 0..MAX_BUNDLES as i64 {
            settles.push(settle(1, &[number], Change::Delete));
            assert_eq!(settles.next_bundles().len(), 1);
        }
        settles.push(settle(2, &[100], Change::Delete));
        settles.push(settle(3, &[101], Change::Delete));
        assert!(settles.next_bundles().is_empty());
        let back = settle(1, &[0], Change::Delete);
        let commands = Sender::Commands(vec![(1, 1)]);
        let back = Bundle { change: back.change, receipts: back.receipts, sender: commands };
        settles.done(&back, &outcomes(&[Outcome::Done]));
        assert_eq!(settles.next_bundles().iter().map(msg_ids).collect::<Vec<_>>(), [vec![100, 101]]);
    }

    #[test]
    fn a_failed_bundle_fails_each_of_its_commands() {
        let mut settles = Settles::default();
        settles.push(settle(1, &[1], Change::Delete));
        settles.push(settle(2, &[2], Change::Delete));
        let bundles = settles.next_bundles();
        let (results, _) = settles.done(&bundles[0], &Err(Error::queue_not_found("q")));
        let kinds = results.iter().map(|result| result.results.as_ref().expect_err("an error").kind());
        assert_eq!(kinds.collect::<Vec<_>>(), [Kind::QueueNotFound; 2]);
    }

    #[test]
    fn a_bundle_is_halved_down_to_its_commands_and_they_stay_busy() {
        let mut settles = Settles::default();
        for (request_id, own) in [(1, vec![1, 2]), (2, vec![3]), (3, vec![4, 5])] {
            settles.push(settle(request_id, &own, Change::Delete));
        }
        let mut bundle = settles.next_bundles().remove(0);
        assert!(bundle.can_be_halved());
        let mut rest = bundle.split_off();
        assert_eq!((msg_ids(&bundle), bundle.sender), (vec![1, 2], Sender::Commands(vec![(1, 2)])));
        let last = rest.split_off();
        assert_eq!((msg_ids(&rest), msg_ids(&last)), (vec![3], vec![4, 5]));
        assert!(!rest.can_be_halved() && !last.can_be_halved(), "a command has one verdict");

        let own = settle(0, &[6, 7, 8], Change::Reschedule(Settlement::HiddenForMillis(1_000)));
        let mut own = Bundle { change: own.change, receipts: own.receipts, sender: Sender::AutoExtend };
        let second = own.split_off();
        assert_eq!((msg_ids(&own), msg_ids(&second)), (vec![6], vec![7, 8]));
        assert!(
            !own.can_be_halved() && second.can_be_halved(),
            "of the server's own each message has its own"
        );
    }

    #[test]
    fn a_locked_message_holds_up_its_own_command_only() {
        let mut settles = Settles::default();
        settles.push(settle(1, &[1, 2], Change::Delete));
        settles.push(settle(2, &[3], Change::Delete));
        let bundles = settles.next_bundles();
        let told = Ok(vec![Some(result(Outcome::Done)), None, Some(result(Outcome::Done))]);
        let (results, locked) = settles.done(&bundles[0], &told);
        assert_eq!(answers(results), [(2, vec![Outcome::Done])]);
        assert_eq!(locked[0].receipts().map(|receipt| receipt.msg_id()).collect::<Vec<_>>(), [2]);
        assert_eq!((settles.commands(), settles.receipts()), (1, 2));
        assert_eq!(settles.pending(), HashSet::from([2]));

        // What is told of is free for others, and what is locked is not.
        settles.push(settle(3, &[2], Change::Release { delay_ms: Some(0) }));
        settles.push(settle(4, &[1], Change::Archive));
        assert_eq!(settles.next_bundles().iter().map(msg_ids).collect::<Vec<_>>(), [vec![1]]);
        let results = vec![result(Outcome::Done), result(Outcome::Stale)];
        let answer = settles.unlocked(&locked[0], Ok(results));
        assert_eq!(answers(vec![answer]), [(1, vec![Outcome::Done, Outcome::Stale])]);
        assert_eq!((settles.commands(), settles.receipts()), (2, 2));
        assert_eq!(settles.next_bundles().iter().map(msg_ids).collect::<Vec<_>>(), [vec![2]]);
    }

    #[test]
    fn commands_that_wait_for_locked_messages_leave_room_for_others() {
        let mut settles = Settles::default();
        let mut waiting = Vec::new();
        for number in 0..2 * MAX_BUNDLES as i64 {
            settles.push(settle(1, &[number], Change::Delete));
            let bundles = settles.next_bundles();
            assert_eq!(bundles.len(), 1, "{number}");
            waiting.extend(settles.done(&bundles[0], &Ok(vec![None])).1);
        }
        assert_eq!(settles.commands(), 2 * MAX_BUNDLES, "they have no result yet");
        for locked in waiting {
            let busy = settles.unlocked(&locked, Err(Error::new(Kind::QueueBusy, "locked")));
            assert_eq!(busy.results.expect_err("an error").kind(), Kind::QueueBusy);
        }
        assert_eq!((settles.commands(), settles.receipts(), settles.pending().len()), (0, 0, 0));
    }
}
