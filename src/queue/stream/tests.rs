//! Streams in virtual time, whose clients stop taking what they are offered.

use std::future::poll_fn;

use tokio::time::{advance, sleep};

use super::*;
use crate::domain::{Kind, Timestamp};
use crate::engine::dispatch::fake::{self, PIECE, Stage};
use crate::engine::{Presence, StreamKind, Streams};

const SECOND: Duration = Duration::from_secs(1);
/// The visibility timeout of what the stage reads, and what a client may let its messages lie.
const TIMEOUT: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(15);

/// A stream of the queue `a` that takes so many messages at a time and altogether, and ends at an age.
fn open(
    stage: &Stage,
    max_in_flight: usize,
    max_messages: Option<usize>,
    age: Option<Duration>,
) -> ReadStream {
    let (sender, items) = mpsc::channel(1);
    let order = fake::order("a");
    let (followed, window) = (stage.events.follow(&order.queue), Arc::new(Window::new(max_in_flight)));
    followed.add_window(&window);
    let reader = Reader {
        subscription: stage.subscribe("a"),
        _followed: followed,
        _open: Streams::default().open(StreamKind::Read),
        presence: Presence::default(),
        left: max_messages,
        shelf: None,
        look_failed: false,
        ends: age.map(|age| Instant::now() + age),
        heartbeat: Instant::now() + 10 * SECOND,
        dispatch: stage.dispatch.clone(),
        drain: stage.drain.clone(),
        options: StreamOptions { order, max_in_flight, max_messages, heartbeat_interval: 10 * SECOND },
        window,
        deadline: Deadline::within(1_000 * TIMEOUT),
    };
    stage.tasks.spawn(reader.run(sender));
    ReadStream { items }
}

async fn next(stream: &mut ReadStream) -> Option<Result<StreamItem>> {
    poll_fn(|context| stream.poll_next(context)).await
}

/// The next messages: their ids, and for how long they are still hidden.
async fn messages(stage: &Stage, stream: &mut ReadStream) -> Vec<(i64, Duration)> {
    loop {
        match next(stream).await {
            Some(Ok(StreamItem::Messages(handover))) => {
                let taken = handover.hand_over();
                return taken
                    .iter()
                    .map(|taken| (taken.message.msg_id, stage.fake.hidden_for(taken)))
                    .collect();
            }
            Some(Ok(StreamItem::Heartbeat { .. })) => {}
            _ => panic!("no end"),
        }
    }
}

/// The read counts of messages that are visible.
fn visible(stage: &Stage) -> Vec<(i64, i32)> {
    stage.fake.visible("a")
}

#[tokio::test(start_paused = true)]
async fn what_a_client_does_not_take_for_half_its_timeout_goes_back_and_comes_again() {
    let stage = fake::stage();
    let sent = [stage.fake.send("a"), stage.fake.send("a")];
    let mut stream = open(&stage, 10, None, None);
    sleep(PATIENCE - SECOND).await;
    assert_eq!(stage.fake.count("give_back"), 0, "it may still come");
    assert_eq!(visible(&stage), []);
    sleep(2 * SECOND).await;
    assert_eq!(visible(&stage), sent.map(|msg_id| (msg_id, 0)), "visible, and not counted");

    // Nothing is read for it until it comes, however long that takes.
    let reads = stage.fake.count("read");
    sleep(100 * TIMEOUT).await;
    assert_eq!((stage.fake.count("read"), stage.fake.count("give_back")), (reads, 1));
    let fresh = messages(&stage, &mut stream).await;
    assert_eq!(fresh, sent.map(|msg_id| (msg_id, TIMEOUT)), "as if it had just been opened");
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_in_time_stays_taken() {
    let stage = fake::stage();
    let sent = stage.fake.send("a");
    let mut stream = open(&stage, 1, None, None);
    sleep(PATIENCE - SECOND).await;
    assert_eq!(messages(&stage, &mut stream).await, [(sent, TIMEOUT - PATIENCE + SECOND)]);
    sleep(10 * SECOND).await;
    assert_eq!((visible(&stage), stage.fake.count("give_back")), (Vec::new(), 0));
}

#[tokio::test(start_paused = true)]
async fn what_went_back_counts_neither_for_the_window_nor_for_the_number_of_messages() {
    let stage = fake::stage();
    stage.fake.send("a");
    stage.fake.send("a");
    let mut stream = open(&stage, 2, Some(2), None);
    sleep(PATIENCE + SECOND).await;
    assert_eq!(visible(&stage).len(), 2);
    assert_eq!(messages(&stage, &mut stream).await.len(), 2);
    assert!(next(&mut stream).await.is_none(), "two were wanted, and two came");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_takes_back_what_waits() {
    let stage = fake::stage();
    let sent = stage.fake.send("a");
    let mut old = open(&stage, 1, None, Some(5 * SECOND));
    sleep(6 * SECOND).await;
    assert_eq!(visible(&stage), [(sent, 0)]);
    sleep(TIMEOUT).await;
    assert!(next(&mut old).await.is_none(), "what waited is another's by now");

    let mut drained = open(&stage, 1, None, None);
    sleep(SECOND).await;
    assert_eq!(visible(&stage), []);
    stage.drain.cancel();
    advance(Duration::from_millis(10)).await;
    sleep(SECOND).await;
    assert_eq!(visible(&stage), [(sent, 0)]);
    let closing = next(&mut drained).await.expect("closing").expect("no error");
    assert!(matches!(closing, StreamItem::Closing { reason: ClosingReason::Draining, .. }));
    assert!(next(&mut drained).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_last_batch_of_a_finished_stream_is_not_taken_back() {
    let stage = fake::stage();
    let sent = stage.fake.send("a");
    let mut stream = open(&stage, 10, Some(1), None);
    let offer = stream.items.recv().await.expect("an offer").expect("no error");
    // The transport has the offer and has not looked into it yet; the stream's task ends meanwhile.
    sleep(SECOND).await;
    assert!(stream.items.recv().await.is_none(), "one was wanted, and one came");
    let Offer::Messages(shelf) = offer else { panic!("messages") };
    assert_eq!(fake::ids(shelf.take().expect("the batch is there")), [sent]);
    assert_eq!((visible(&stage), stage.fake.count("give_back")), (Vec::new(), 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_window_that_cannot_be_looked_at_is_looked_at_with_restraint() {
    let stage = fake::stage();
    stage.fake.send("a");
    let mut stream = open(&stage, 1, None, None);
    assert_eq!(messages(&stage, &mut stream).await.len(), 1);
    stage.fake.with(|world, _| world.refuses = Some(Kind::DatabaseUnavailable));
    let taking = tokio::spawn(async move { while let Some(Ok(_)) = next(&mut stream).await {} });
    // Its time is up after a half of this, and then the look is due all the time.
    sleep(2 * TIMEOUT).await;
    let looks = stage.fake.count("refused");
    assert!((10..=200).contains(&looks), "{looks} looks in a minute");
    taking.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_gives_back_what_it_was_offered() {
    let stage = fake::stage();
    let sent = stage.fake.send("a");
    let stream = open(&stage, 1, None, None);
    sleep(SECOND).await;
    assert_eq!(visible(&stage), []);
    drop(stream);
    sleep(SECOND).await;
    assert_eq!(visible(&stage), [(sent, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_withdrawal_gives_back_what_was_given_and_keeps_an_end() {
    let stage = fake::stage();
    let sent = stage.fake.send("a");
    let created_at = Timestamp::from_unix_micros(0);
    let subscribed = stage.dispatch.subscribe(&fake::order("a"), created_at, PIECE);
    let mut subscription = subscribed.expect("a subscription");
    subscription.set_demand(1);
    sleep(SECOND).await;
    // It has been given already: no other demand changes that.
    subscription.set_demand(0);
    sleep(SECOND).await;
    assert_eq!(visible(&stage), []);
    subscription.withdraw();
    sleep(SECOND).await;
    assert_eq!(visible(&stage), [(sent, 0)]);

    subscription.set_demand(1);
    assert_eq!(fake::ids(subscription.next().await.expect("messages")), [sent]);
    subscription.set_demand(1);
    stage.fake.with(|world, _| world.queues.values_mut().for_each(|queue| queue.gone = true));
    stage.events.arrived(&fake::queue("a"));
    sleep(SECOND).await;
    subscription.withdraw();
    let end = subscription.next().await.err().expect("an end");
    assert_eq!(end.kind(), Kind::QueueNotFound);
}
