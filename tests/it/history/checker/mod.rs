//! Says what is wrong with a history: a pure function of what was recorded, one rule a function.
//!
//! The rules are the promises that callers rely on. What may have happened counts as happened wherever that excuses a
//! history: an answer that leaves the outcome open never makes a violation by itself.
//!
//! | promise | rules |
//! |---|---|
//! | 1. What is acknowledged is delivered, archived, a dead letter or there at the end, under its id | `nothing_is_lost`, `ids_belong_to_their_bodies`, `each_send_is_stored_once`, `what_is_redriven_arrives`, `what_is_redriven_is_no_letter`, `what_is_moved_is_in_one_place`, `moves_count_what_they_move`, `moves_take_what_they_name` |
//! | 2. What fails for certain is never delivered; transactions happen whole or not at all | `nothing_comes_from_nowhere`, `whole_calls_happen_whole` |
//! | 3. One delivery reaches one call; one that was rolled back settles nothing | `a_delivery_reaches_one_call`, `rolled_back_reads_settle_nothing` |
//! | 4. A message is removed once, by its newest delivery | `a_message_is_removed_once`, `only_the_newest_delivery_settles`, `nothing_returns_once_removed` |
//! | 5. STALE and NOT_FOUND are true; counts add up | `stale_means_read_again`, `not_found_means_gone`, `dropped_queues_settle_nothing`, `a_purge_counts_what_it_removes`, `nothing_survives_a_purge` |
//! | 6. One key, one id in its window; afterwards, or in a new queue, a new message | `one_key_has_one_id` |
//! | 7. A keyed transaction is applied once | `a_keyed_call_is_applied_once` |
//! | 8. `read_ct` counts hand-overs; nobody gets a message once too often, and none goes aside before | `read_counts_count_deliveries`, `nobody_gets_a_message_too_often`, `dead_letters_were_handed_over` |
//! | 9. Nobody's visibility timeout is cut, neither by a give-back nor by an extend | `hidden_messages_stay_hidden`, `delayed_messages_are_not_early`, `extending_never_shortens`, `releases_wait_as_the_policy_says`, `reads_hide_as_the_policy_says` |
//! | 10. A group keeps its order, and so does what is moved | `groups_keep_their_order`, `moves_keep_the_order` |
//! | 11. Nobody waits beside a visible message, whoever sent or moved it, nor otherwise than the policy says | `nobody_waits_beside_a_message`, with a patience that a slow machine needs, `reads_wait_as_the_policy_says` |
//! | 12. Locked rows and merged statements hurt nobody else | `locks_hurt_nobody_else` |
//! | 13. A bad message fails alone, and a large one by the policy | `every_item_has_its_own_verdict`, `sends_are_as_large_as_the_policy_allows` |
//! | 14. An old primary serves nobody once a newer one was seen | `nothing_is_lost`: what an old primary took is not there at the end |
//! | Lists show what is there, and change nothing; an archive keeps what its policy keeps, and no longer | `lists_show_what_is_there`, `lists_leave_nothing_out`, `old_messages_leave_the_archive` |
//! | 15. The checker finds what is broken | `planted`, and `random` |

mod dead_letters;
mod deliveries;
mod groups;
mod index;
mod keys;
mod lists;
mod lives;
mod moves;
mod neighbours;
mod policies;
mod purges;
mod sends;
mod settles;
mod visibility;
mod waits;

#[cfg(test)]
mod planted;
#[cfg(test)]
mod random;
#[cfg(test)]
mod story;

use std::fmt;

use super::record::{Call, History};
use index::Index;

/// A promise that was broken, with the calls that show it.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    /// The rule, by the name of its function.
    pub(crate) rule: &'static str,
    /// What is wrong, in a sentence.
    pub(crate) what: String,
    /// The calls that show it, in the order of the story.
    pub(crate) calls: Vec<Call>,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}: {}", self.rule, self.what)?;
        self.calls.iter().try_for_each(|call| writeln!(formatter, "    {call}"))
    }
}

/// A rule: it looks at a whole history and says what breaks it.
type Rule = fn(&Index<'_>) -> Vec<Violation>;

/// All rules, each under its name.
const RULES: &[(&str, Rule)] = &[
    ("nothing_is_lost", sends::nothing_is_lost),
    ("nothing_comes_from_nowhere", sends::nothing_comes_from_nowhere),
    ("each_send_is_stored_once", sends::each_send_is_stored_once),
    ("ids_belong_to_their_bodies", sends::ids_belong_to_their_bodies),
    ("whole_calls_happen_whole", sends::whole_calls_happen_whole),
    ("what_is_redriven_arrives", moves::what_is_redriven_arrives),
    ("what_is_redriven_is_no_letter", moves::what_is_redriven_is_no_letter),
    ("moves_keep_the_order", moves::moves_keep_the_order),
    ("what_is_moved_is_in_one_place", lives::what_is_moved_is_in_one_place),
    ("moves_count_what_they_move", lives::moves_count_what_they_move),
    ("moves_take_what_they_name", lives::moves_take_what_they_name),
    ("lists_show_what_is_there", lists::lists_show_what_is_there),
    ("lists_leave_nothing_out", lists::lists_leave_nothing_out),
    ("old_messages_leave_the_archive", lists::old_messages_leave_the_archive),
    ("one_key_has_one_id", keys::one_key_has_one_id),
    ("a_keyed_call_is_applied_once", keys::a_keyed_call_is_applied_once),
    ("a_delivery_reaches_one_call", deliveries::a_delivery_reaches_one_call),
    ("read_counts_count_deliveries", deliveries::read_counts_count_deliveries),
    ("nobody_gets_a_message_too_often", dead_letters::nobody_gets_a_message_too_often),
    ("dead_letters_were_handed_over", dead_letters::dead_letters_were_handed_over),
    ("nothing_returns_once_removed", deliveries::nothing_returns_once_removed),
    ("hidden_messages_stay_hidden", visibility::hidden_messages_stay_hidden),
    ("delayed_messages_are_not_early", visibility::delayed_messages_are_not_early),
    ("extending_never_shortens", visibility::extending_never_shortens),
    ("releases_wait_as_the_policy_says", policies::releases_wait_as_the_policy_says),
    ("reads_hide_as_the_policy_says", policies::reads_hide_as_the_policy_says),
    ("reads_wait_as_the_policy_says", policies::reads_wait_as_the_policy_says),
    ("sends_are_as_large_as_the_policy_allows", policies::sends_are_as_large_as_the_policy_allows),
    ("a_message_is_removed_once", settles::a_message_is_removed_once),
    ("only_the_newest_delivery_settles", settles::only_the_newest_delivery_settles),
    ("rolled_back_reads_settle_nothing", settles::rolled_back_reads_settle_nothing),
    ("stale_means_read_again", settles::stale_means_read_again),
    ("dropped_queues_settle_nothing", settles::dropped_queues_settle_nothing),
    ("not_found_means_gone", settles::not_found_means_gone),
    ("a_purge_counts_what_it_removes", purges::a_purge_counts_what_it_removes),
    ("nothing_survives_a_purge", purges::nothing_survives_a_purge),
    ("groups_keep_their_order", groups::groups_keep_their_order),
    ("locks_hurt_nobody_else", neighbours::locks_hurt_nobody_else),
    ("every_item_has_its_own_verdict", neighbours::every_item_has_its_own_verdict),
    ("nobody_waits_beside_a_message", waits::nobody_waits_beside_a_message),
];

/// Everything that is wrong with a history.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let index = Index::of(history);
    RULES.iter().flat_map(|(_, rule)| rule(&index)).collect()
}

/// Makes a violation of the rule whose name is given.
fn violation(rule: &'static str, what: String, calls: &[&Call]) -> Violation {
    let mut calls: Vec<Call> = calls.iter().map(|&call| call.clone()).collect();
    calls.sort_by_key(|call| (call.asked, call.answered));
    calls.dedup_by(|a, b| (a.asked, a.answered, &a.who) == (b.asked, b.answered, &b.who));
    Violation { rule, what, calls }
}
