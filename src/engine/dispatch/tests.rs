//! Dispatchers in virtual time, on a database that is made believe.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use super::fake::{PIECE, Queue, Stage, ids, order, queue, stage};
use super::*;
use crate::domain::Receipt;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn without_a_demand_there_is_no_query() {
    let stage = stage();
    stage.fake.send("a");
    let _subscription = stage.subscribe("a");
    sleep(HOUR).await;
    assert_eq!(stage.fake.statements(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_demand_is_met_once_and_by_no_more_than_it_says() {
    let stage = stage();
    for _ in 0..5 {
        stage.fake.send("a");
    }
    let mut subscription = stage.subscribe("a");
    subscription.set_demand(3);
    assert_eq!(ids(subscription.next().await.expect("messages")), [1, 2, 3]);
    assert!(timeout(HOUR, subscription.next()).await.is_err());
    subscription.set_demand(3);
    let next = ids(subscription.next().await.expect("messages"));
    assert_eq!(next.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn callers_who_ask_at_the_same_time_share_reads() {
    let stage = stage();
    for _ in 0..64 {
        stage.fake.send("a");
    }
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(5));
    let reads = (0..64).map(|_| stage.read_once("a", 1, Duration::ZERO));
    let got = futures_util::future::join_all(reads).await;
    let mut got: Vec<i64> = got.into_iter().flat_map(|read| read.expect("a read")).collect();
    got.sort_unstable();
    assert_eq!(got, (1..=64).collect::<Vec<_>>());
    assert!(stage.fake.count("read") <= 3, "{}", stage.fake.count("read"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_wait_is_answered_by_a_read_that_began_after_it() {
    let stage = stage();
    stage.fake.with(|world, _| world.read_takes = Duration::from_secs(1));
    let (first, second) = tokio::join!(stage.read_once("a", 1, Duration::ZERO), async {
        // The first read has looked and is on its way back.
        sleep(Duration::from_millis(500)).await;
        let sent = stage.fake.send("a");
        (sent, stage.read_once("a", 1, Duration::ZERO).await)
    });
    assert_eq!(first.expect("an answer"), Vec::<i64>::new());
    assert_eq!(second.1.expect("an answer"), [second.0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_gone_subscriber_was_given_goes_back_and_does_not_count() {
    let stage = stage();
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(10));
    for _ in 0..20 {
        stage.fake.send("a");
    }
    let leaving = stage.subscribe("a");
    leaving.set_demand(20);
    sleep(Duration::from_millis(5)).await;
    drop(leaving);
    sleep(Duration::from_secs(1)).await;
    stage.fake.with(|world, now| {
        for (visible, read_ct) in world.queues[&queue("a")].messages.values() {
            assert!(*visible <= now && *read_ct == 0);
        }
    });
    assert_eq!(stage.fake.count("give_back"), 1);
}

#[tokio::test(start_paused = true)]
async fn plain_sends_are_found_within_a_second_by_one_statement_a_second_for_all_queues() {
    let stage = stage();
    let names: Vec<String> = (0..200).map(|number| format!("q{number}")).collect();
    let mut subscriptions: Vec<Subscription> = names.iter().map(|name| stage.subscribe(name)).collect();
    for subscription in &subscriptions {
        subscription.set_demand(10);
    }
    sleep(Duration::from_secs(60)).await;
    let before = stage.fake.statements();
    sleep(Duration::from_secs(100)).await;
    let idle = stage.fake.statements() - before;
    assert!(idle <= 150, "{idle} statements in 100 s of nothing");
    for place in [0, 77, 199] {
        stage.fake.send(&names[place]);
        let found = timeout(Duration::from_millis(1_050), subscriptions[place].next()).await;
        assert_eq!(ids(found.expect("found in time").expect("messages")), [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_those_who_ask_once_and_outlived_by_the_others() {
    let stage = stage();
    let mut stream = stage.subscribe("a");
    stream.set_demand(1);
    stage.fake.with(|world, _| world.refuses = Some(Kind::DatabaseUnavailable));
    let asked = stage.read_once("a", 1, HOUR).await;
    assert_eq!(asked.expect_err("a failure").kind(), Kind::DatabaseUnavailable);
    assert!(timeout(HOUR, stream.next()).await.is_err());
    stage.fake.with(|world, _| world.refuses = None);
    let sent = stage.fake.send("a");
    let next = timeout(Duration::from_secs(2), stream.next()).await.expect("resumed");
    assert_eq!(ids(next.expect("messages")), [sent]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_hears_of_an_outage_and_of_a_drain_that_it_waited_in_vain() {
    let stage = stage();
    let (failed, ()) = tokio::join!(stage.read_once("a", 1, HOUR), async {
        sleep(Duration::from_secs(30)).await;
        stage.fake.with(|world, _| world.refuses = Some(Kind::DatabaseUnavailable));
    });
    assert_eq!(failed.expect_err("a failure").kind(), Kind::DatabaseUnavailable);
    stage.fake.with(|world, _| world.refuses = None);
    let (drained, ()) = tokio::join!(stage.read_once("a", 1, HOUR), async {
        sleep(Duration::from_secs(30)).await;
        stage.drain.cancel();
    });
    assert_eq!(drained.expect("an empty answer"), Vec::<i64>::new());
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_gone_or_made_anew_ends_its_subscribers() {
    let stage = stage();
    for change in [|queue: &mut Queue| queue.gone = true, |queue: &mut Queue| queue.created_at = 5] {
        let mut subscription = stage.subscribe("a");
        subscription.set_demand(1);
        sleep(Duration::from_secs(10)).await;
        stage.fake.with(|world, _| {
            change(world.queues.entry(queue("a")).or_default());
        });
        let ended = timeout(Duration::from_secs(3), subscription.next()).await.expect("an end");
        assert_eq!(ended.err().expect("an error").kind(), Kind::QueueNotFound);
        stage.fake.with(|world, _| drop(world.queues.remove(&queue("a"))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_subscribers_and_dispatchers() {
    let stage = stage();
    let mut subscription = stage.subscribe("a");
    subscription.set_demand(1);
    sleep(Duration::from_secs(10)).await;
    stage.drain.cancel();
    stage.tasks.close();
    timeout(Duration::from_secs(1), stage.tasks.wait()).await.expect("an end of all tasks");
    assert_eq!(subscription.next().await.err().expect("an error").kind(), Kind::Draining);
}

#[tokio::test(start_paused = true)]
async fn reads_leave_connections_to_others() {
    let stage = stage();
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(100));
    let subscriptions: Vec<Subscription> =
        (0..50).map(|number| stage.subscribe(&format!("q{number}"))).collect();
    for subscription in &subscriptions {
        subscription.set_demand(1);
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.fake.with(|world, _| world.most_at_once), 6);
}

#[tokio::test(start_paused = true)]
async fn slow_reads_leave_half_to_those_that_are_quick() {
    let stage = stage();
    let slow: Vec<String> = (0..12).map(|number| format!("slow{number}")).collect();
    stage.fake.with(|world, _| {
        world.read_takes = Duration::from_hours(1);
        world.slow = slow.iter().map(|name| queue(name)).collect();
    });
    let subscriptions: Vec<Subscription> = slow.iter().map(|name| stage.subscribe(name)).collect();
    subscriptions.iter().for_each(|subscription| subscription.set_demand(1));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.fake.with(|world, _| world.at_once), 3);
    // Those that are under way have begun to take their time before.
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(1));
    let id = stage.fake.send("quick");
    let read = timeout(Duration::from_secs(1), stage.read_once("quick", 1, Duration::ZERO)).await;
    assert_eq!(read.expect("an answer").expect("a message"), [id]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_not_read_in_endlessly_many_ways() {
    let stage = stage();
    let in_way = |number: usize| ReadOrder { conditional: Some(format!("[{number}]")), ..order("a") };
    let created_at = Timestamp::from_unix_micros(0);
    let subscribe = |number: usize| stage.dispatch.subscribe(&in_way(number), created_at, PIECE);
    let held: Vec<Subscription> =
        (0..CLASSES_OF_A_QUEUE).map(|number| subscribe(number).expect("a subscription")).collect();
    assert_eq!(subscribe(99).err().expect("a refusal").kind(), Kind::Overloaded);
    assert!(subscribe(0).is_ok());
    drop(held);
    assert!(subscribe(99).is_ok());
}

#[tokio::test(start_paused = true)]
async fn ways_to_read_that_nobody_uses_any_more_leave_nothing_behind() {
    let stage = stage();
    let created_at = Timestamp::from_unix_micros(0);
    // Something happens in the queue all the time.
    for number in 0..1_000 {
        let order = ReadOrder { conditional: Some(format!("[{number}]")), ..order("a") };
        let subscription = stage.dispatch.subscribe(&order, created_at, PIECE).expect("a subscription");
        subscription.set_demand(1);
        stage.events.arrived(&queue("a"));
        sleep(Duration::from_millis(10)).await;
        drop(subscription);
        // One more of the lookout, and one that is about to end.
        assert!(stage.tasks.len() <= CLASSES_OF_A_QUEUE + 2, "{} tasks", stage.tasks.len());
    }
    for _ in 0..60 {
        stage.events.arrived(&queue("a"));
        sleep(Duration::from_millis(100)).await;
    }
    assert!(stage.tasks.len() <= 1, "{} tasks", stage.tasks.len());
}

/// Whatever happens in whatever order, a visible message does not wait for longer than it may while somebody wants it.
#[tokio::test(start_paused = true)]
async fn no_wake_up_is_lost() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let stage = stage();
        stage.fake.with(|world, _| world.read_takes = Duration::from_millis(random.random_range(0..40)));
        let mut stream = stage.subscribe("a");
        let mut held = Vec::new();
        for _ in 0..60 {
            sleep(Duration::from_millis(random.random_range(0..1_500))).await;
            stream.set_demand(random.random_range(1..4));
            let (delay, longest) = match random.random_range(0..4) {
                // Announced, at once and later.
                0 => (Duration::ZERO, Duration::from_millis(250)),
                1 => (Duration::from_millis(random.random_range(0..3_000)), Duration::from_millis(250)),
                // Not announced.
                2 => (Duration::ZERO, Duration::from_millis(1_100)),
                _ => (Duration::from_millis(random.random_range(0..3_000)), Duration::from_millis(1_100)),
            };
            let announced = longest < Duration::from_secs(1);
            let sent = stage.fake.send_in("a", delay);
            match announced {
                true if delay.is_zero() => stage.events.arrived(&queue("a")),
                true => stage.events.arrives_at(&queue("a"), Instant::now() + delay),
                false => {}
            }
            let due = Instant::now() + delay;
            loop {
                let next = timeout(Duration::from_secs(40), stream.next()).await;
                let next = next.unwrap_or_else(|_| panic!("seed {seed}: message {sent} never came"));
                let came = ids(next.expect("messages"));
                held.extend(&came);
                if came.contains(&sent) {
                    break;
                }
                stream.set_demand(1);
            }
            let late = due.elapsed();
            assert!(late <= longest + Duration::from_millis(80), "seed {seed}: {late:?} late");
            for msg_id in held.drain(..) {
                stage.fake.delete("a", msg_id);
            }
        }
    }
}

/// A stage with a queue so large that the question for the next moment takes half a second, and is asked twice a minute; nor
/// does the lookout tell moments.
fn large() -> Stage {
    let stage = stage();
    stage.fake.with(|world, _| {
        world.ask_takes = Duration::from_millis(500);
        world.from_afar = true;
    });
    stage
}

#[tokio::test(start_paused = true)]
async fn moments_that_were_told_are_not_forgotten_where_the_next_is_rarely_asked_for() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let stage = large();
        let mut stream = stage.subscribe("a");
        stream.set_demand(100);
        sleep(Duration::from_secs(30)).await;
        let mut due = HashMap::new();
        for _ in 0..random.random_range(1..30) {
            let delay = Duration::from_millis(random.random_range(0..120_000));
            let sent = stage.fake.send_in("a", delay);
            stage.events.arrives_at(&queue("a"), Instant::now() + delay);
            due.insert(sent, Instant::now() + delay);
        }
        while !due.is_empty() {
            let came = timeout(HOUR, stream.next()).await.expect("messages in time").expect("messages");
            for msg_id in ids(came) {
                let late = due.remove(&msg_id).expect("a message that is due").elapsed();
                // A tenth of the pause, the question that may be under way, and the grain of what is remembered.
                assert!(late <= Duration::from_millis(2_500 + 500 + 200), "seed {seed}: {late:?} late");
                stage.fake.delete("a", msg_id);
            }
            stream.set_demand(100);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn moments_at_which_nothing_comes_lead_to_few_reads_of_a_large_queue() {
    let stage = large();
    let stream = stage.subscribe("a");
    stream.set_demand(100);
    sleep(Duration::from_secs(20)).await;
    let sent = stage.fake.send_in("a", Duration::from_secs(10));
    for tenths in 1..600 {
        stage.events.arrives_at(&queue("a"), Instant::now() + Duration::from_millis(100 * tenths));
    }
    let reads = async |seconds| {
        let before = stage.fake.count("read");
        sleep(Duration::from_secs(seconds)).await;
        stage.fake.count("read") - before
    };
    let before_the_question = reads(5).await;
    assert!(before_the_question >= 45, "{before_the_question} reads");
    sleep(Duration::from_secs(2)).await;
    stage.fake.delete("a", sent);
    let reads = reads(23).await;
    // One for each span of the pause that is left.
    assert!((6..=9).contains(&reads), "{reads} reads");
}

#[tokio::test(start_paused = true)]
async fn the_windows_of_many_streams_are_checked_together() {
    let stage = stage();
    let at = Timestamp::from_unix_micros(1);
    let full = |msg_id| {
        let window = Arc::new(Window::new(1));
        let receipt = Receipt::new(&queue("a"), at, msg_id, 1, at, Some(at));
        window.take(std::iter::once(receipt), HOUR);
        window
    };
    let windows: Vec<Arc<Window>> = (1..=200).map(full).collect();
    let name = queue("a");
    let checks = windows.iter().map(|window| stage.dispatch.check_window(&name, window));
    for checked in futures_util::future::join_all(checks).await {
        checked.expect("a check");
    }
    assert!(windows.iter().all(|window| window.in_flight() == 0));
    // The first goes at once, and the others gather behind it.
    assert!(stage.fake.with(|world, _| world.statements["hidden_for"]) <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_read_in_vain_is_not_followed_by_the_next_at_once() {
    let stage = stage();
    let sent = stage.fake.send("a");
    stage.fake.with(|world, _| world.in_vain = 100);
    let mut subscription = stage.subscribe("a");
    subscription.set_demand(1);
    sleep(Duration::from_secs(10)).await;
    assert!((10..=21).contains(&stage.fake.count("read")), "{}", stage.fake.count("read"));
    assert_eq!(ids(timeout(HOUR, subscription.next()).await.expect("in time").expect("messages")), [sent]);
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_that_panics_ends_its_subscribers_and_another_takes_its_place() {
    let stage = stage();
    let mut subscription = stage.subscribe("a");
    stage.fake.with(|world, _| world.panics_at = Some("read"));
    subscription.set_demand(1);
    let ended = timeout(HOUR, subscription.next()).await.expect("an end");
    assert_eq!(ended.err().expect("an error").kind(), Kind::Internal);
    let sent = stage.fake.send("a");
    let mut again = stage.subscribe("a");
    again.set_demand(1);
    let next = timeout(HOUR, again.next()).await.expect("messages in time");
    assert_eq!(ids(next.expect("messages")), [sent]);
}

#[tokio::test(start_paused = true)]
async fn a_lookout_that_panics_is_replaced_at_once() {
    let stage = stage();
    let mut subscription = stage.subscribe("a");
    subscription.set_demand(1);
    for panics in 1..=3 {
        stage.fake.with(|world, _| world.panics_at = Some("look_around"));
        sleep(Duration::from_secs(10)).await;
        assert!(stage.fake.with(|world, _| world.panics_at.is_none()), "{panics}");
    }
    assert!(stage.fake.count("look_around") > 25, "{}", stage.fake.count("look_around"));
    let sent = stage.fake.send("a");
    let found = timeout(Duration::from_millis(1_050), subscription.next()).await.expect("found in time");
    assert_eq!(ids(found.expect("messages")), [sent]);
}
