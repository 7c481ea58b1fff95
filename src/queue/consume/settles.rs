//! The settles of one stream: many commands in one bundle, and never two about one message at a time.

use std::collections::{HashSet, VecDeque};

use crate::domain::message::ItemResult;
use crate::domain::{Error, Receipt, Result, Settlement};

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
    pub settlement: Settlement,
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
    pub(super) settlement: Settlement,
    pub(super) receipts: Vec<Receipt>,
    pub(super) sender: Sender,
}

/// What one stream's client wants settled, and what of it is at the database.
#[derive(Debug, Default)]
pub(super) struct Settles {
    waiting: VecDeque<Settle>,
    /// The messages that bundles at the database are about.
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
                .position(|bundle| bundle.settlement == settle.settlement && bundle.receipts.len() <= room);
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
                    settlement: settle.settlement,
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

    /// Notes that a bundle came back, and gives each of its commands its own result.
    pub(super) fn done(&mut self, bundle: &Bundle, results: &Result<Vec<ItemResult>>) -> Vec<CommandResult> {
        for receipt in &bundle.receipts {
            self.busy.remove(&receipt.msg_id());
        }
        let Sender::Commands(commands) = &bundle.sender else {
            return Vec::new();
        };
        self.bundles -= 1;
        self.commands -= commands.len();
        self.receipts -= bundle.receipts.len();
        let mut begins = 0;
        let of_each = commands.iter().map(|&(request_id, count)| {
            let own = begins..begins + count;
            begins = own.end;
            let results = match results {
                Ok(results) => results.get(own).map(<[ItemResult]>::to_vec).ok_or_else(miscounted),
                Err(error) => Err(error.clone()),
            };
            CommandResult { request_id, results }
        });
        of_each.collect()
    }
}

fn miscounted() -> Error {
    Error::internal("a bundle's results do not match its receipts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::Outcome;
    use crate::domain::{Kind, QueueName, Timestamp};

    fn settle(request_id: u64, msg_ids: &[i64], settlement: Settlement) -> Settle {
        let queue = QueueName::try_from("q".to_owned()).expect("a good name");
        let at = Timestamp::from_unix_micros(1);
        let receipts = msg_ids.iter().map(|&msg_id| Receipt::new(&queue, at, msg_id, 1, at, Some(at)));
        Settle { request_id, receipts: receipts.collect(), settlement }
    }

    fn msg_ids(bundle: &Bundle) -> Vec<i64> {
        bundle.receipts.iter().map(Receipt::msg_id).collect()
    }

    fn outcomes(outcomes: &[Outcome]) -> Result<Vec<ItemResult>> {
        Ok(outcomes.iter().map(|&outcome| ItemResult { outcome, vt: None }).collect())
    }

    #[test]
    fn commands_that_want_the_same_go_together_and_get_their_own_results() {
        let mut settles = Settles::default();
        settles.push(settle(7, &[1, 2], Settlement::Delete));
        settles.push(settle(8, &[3], Settlement::Archive));
        settles.push(settle(9, &[4], Settlement::Delete));
        let bundles = settles.next_bundles();
        assert_eq!(bundles.iter().map(msg_ids).collect::<Vec<_>>(), [vec![1, 2, 4], vec![3]]);
        assert_eq!((settles.commands(), settles.receipts()), (3, 4));

        let results =
            settles.done(&bundles[0], &outcomes(&[Outcome::Done, Outcome::Stale, Outcome::NotFound]));
        let found: Vec<(u64, Vec<Outcome>)> = results
            .into_iter()
            .map(|result| {
                let results = result.results.expect("results");
                (result.request_id, results.iter().map(|item| item.outcome).collect())
            })
            .collect();
        assert_eq!(found, [(7, vec![Outcome::Done, Outcome::Stale]), (9, vec![Outcome::NotFound])]);
        assert_eq!((settles.commands(), settles.receipts()), (1, 1));
    }

    #[test]
    fn commands_about_one_message_keep_their_order() {
        let mut settles = Settles::default();
        settles.push(settle(1, &[5], Settlement::HiddenForMillis(1_000)));
        settles.push(settle(2, &[5, 6], Settlement::VisibleAfterMillis(0)));
        settles.push(settle(3, &[6], Settlement::Delete));
        settles.push(settle(4, &[7], Settlement::Delete));
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
        let own = settle(0, &[5], Settlement::HiddenForMillis(1_000));
        let own = Bundle { settlement: own.settlement, receipts: own.receipts, sender: Sender::AutoExtend };
        settles.send_own(&own);
        settles.push(settle(1, &[5], Settlement::VisibleAfterMillis(0)));
        assert!(settles.next_bundles().is_empty());
        assert_eq!(settles.pending(), HashSet::from([5]));
        assert!(settles.done(&own, &outcomes(&[Outcome::Done])).is_empty());
        assert_eq!(settles.next_bundles().len(), 1);
    }

    #[test]
    fn what_is_too_much_for_the_database_gathers() {
        let mut settles = Settles::default();
        for number in 0..MAX_BUNDLES as i64 {
            settles.push(settle(1, &[number], Settlement::Delete));
            assert_eq!(settles.next_bundles().len(), 1);
        }
        settles.push(settle(2, &[100], Settlement::Delete));
        settles.push(settle(3, &[101], Settlement::Delete));
        assert!(settles.next_bundles().is_empty());
        let back = settle(1, &[0], Settlement::Delete);
        let commands = Sender::Commands(vec![(1, 1)]);
        let back = Bundle { settlement: back.settlement, receipts: back.receipts, sender: commands };
        settles.done(&back, &outcomes(&[Outcome::Done]));
        assert_eq!(settles.next_bundles().iter().map(msg_ids).collect::<Vec<_>>(), [vec![100, 101]]);
    }

    #[test]
    fn a_failed_bundle_fails_each_of_its_commands() {
        let mut settles = Settles::default();
        settles.push(settle(1, &[1], Settlement::Delete));
        settles.push(settle(2, &[2], Settlement::Delete));
        let bundles = settles.next_bundles();
        let results = settles.done(&bundles[0], &Err(Error::queue_not_found("q")));
        let kinds = results.iter().map(|result| result.results.as_ref().expect_err("an error").kind());
        assert_eq!(kinds.collect::<Vec<_>>(), [Kind::QueueNotFound; 2]);
    }
}
