//! One caller: its name, its random numbers, its connections, and how it writes down what it does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pgmq_grpc::domain::Timestamp;
use pgmq_grpc::proto::v1::queue_service_client::QueueServiceClient;
use pgmq_grpc::proto::v1::{Message, Outcome as WireOutcome};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;

use crate::history::record::{Call, Delivery, Fault, FaultKind, History, Micros, Outcome, Part, Verdict};
use crate::history::report;

/// What all callers of a run share.
pub(super) struct Run {
    pub(super) seed: u64,
    /// The addresses of the servers, which they keep for the whole run.
    pub(super) addresses: Vec<String>,
    pub(super) database_url: String,
    /// Cancelled when nothing more is to be done to servers and databases.
    pub(super) peace: CancellationToken,
    /// Cancelled when callers are to end.
    pub(super) stop: CancellationToken,
    /// Deduplication ids with their bodies, by what they are used for.
    keys: Mutex<HashMap<String, Vec<(String, String)>>>,
    /// The queues that callers have made, as histories call them, and what they are called.
    made: Mutex<BTreeMap<String, String>>,
    started: (Instant, Micros),
    history: Mutex<History>,
}

impl Run {
    pub(super) fn new(
        seed: u64,
        addresses: Vec<String>,
        database_url: String,
        history: History,
    ) -> Arc<Self> {
        let started = (Instant::now(), Timestamp::now().unix_micros());
        Arc::new(Self {
            seed,
            addresses,
            database_url,
            peace: CancellationToken::new(),
            stop: CancellationToken::new(),
            keys: Mutex::default(),
            made: Mutex::default(),
            started,
            history: Mutex::new(history),
        })
    }

    /// The clock of this process, which never jumps.
    pub(super) fn now(&self) -> Micros {
        self.started.1 + i64::try_from(self.started.0.elapsed().as_micros()).expect("a short run")
    }

    pub(super) fn record(&self, call: Call) {
        self.history.lock().expect("the history").calls.push(call);
    }

    pub(super) fn record_fault(&self, what: FaultKind, from: Micros) {
        let to = self.now();
        self.history.lock().expect("the history").faults.push(Fault { what, from, to });
    }

    pub(super) fn history(&self) -> History {
        self.history.lock().expect("the history").clone()
    }

    /// The queues that callers have made, and not dropped for certain.
    pub(super) fn made(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.made.lock().expect("the queues")
    }

    /// What has been done to its end at least once: calls by their names, and answers of a kind.
    pub(super) fn reached(&self) -> BTreeSet<&'static str> {
        report::reached(&self.history.lock().expect("the history"))
    }
}

/// A caller.
pub(super) struct Worker {
    pub(super) run: Arc<Run>,
    pub(super) who: String,
    pub(super) random: StdRng,
    /// One connection to each server.
    connections: Vec<Channel>,
    bodies: u64,
    /// Cancelled when this caller is to end.
    until: CancellationToken,
    /// Whether the caller gives up a call that it waits for when it is to end.
    pub(super) leaves_at_the_end: bool,
    /// How many of a hundred calls the caller gives up on.
    pub(super) impatience: u32,
}

impl Worker {
    /// A caller whose random numbers follow from the seed and its name.
    pub(super) fn new(run: &Arc<Run>, who: &str) -> Self {
        let salt = who.bytes().fold(0_u64, |salt, byte| salt.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let connections = run.addresses.iter().map(|address| connection(address)).collect();
        let random = StdRng::seed_from_u64(run.seed.wrapping_add(salt));
        let until = run.stop.clone();
        let (run, who) = (Arc::clone(run), who.to_owned());
        Self { run, who, random, connections, bodies: 0, until, leaves_at_the_end: false, impatience: 8 }
    }

    /// One who disturbs the others, and ends before them.
    pub(super) fn who_disturbs(run: &Arc<Run>, who: &str) -> Self {
        Self { until: run.peace.clone(), ..Self::new(run, who) }
    }

    /// Whether the run goes on, after a pause.
    pub(super) async fn goes_on(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.until.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    /// Whether this caller is to end.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_cancelled()
    }

    /// A client of one of the servers.
    pub(super) fn client(&mut self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.connection())
    }

    /// A connection to one of the servers.
    pub(super) fn connection(&mut self) -> Channel {
        let server = self.random.random_range(0..self.connections.len());
        self.connections[server].clone()
    }

    /// Cuts all connections of this caller: whatever is under way on them breaks.
    pub(super) fn disconnect(&mut self) {
        self.connections = self.run.addresses.iter().map(|address| connection(address)).collect();
    }

    /// A body that nobody else sends.
    pub(super) fn body(&mut self) -> String {
        self.bodies += 1;
        format!("\"{} {}\"", self.who, self.bodies)
    }

    /// One that is sometimes longer, up to some hundred bytes.
    pub(super) fn long_body(&mut self) -> String {
        let (body, more) = (self.body(), self.random.random_range(0..100));
        format!("{} {}\"", body.trim_end_matches('"'), "x".repeat(more))
    }

    /// Whether something of so many percent happens.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    pub(super) fn millis(&mut self, longest: u64) -> Duration {
        Duration::from_millis(self.random.random_range(0..=longest))
    }

    /// Whether the run goes on, after a pause of so many milliseconds at most.
    pub(super) async fn pause(&mut self, longest: u64) -> bool {
        let pause = self.millis(longest);
        self.goes_on(pause).await
    }

    /// A deduplication id and the body that everybody sends under it: a new one, one of the last, or one of a few that are
    /// used all the time.
    pub(super) fn key(&mut self, purpose: &str) -> (String, String) {
        let body = self.body();
        let new = (format!("key of {}", body.trim_matches('"')), body);
        let (choice, often, back) = (
            self.random.random_range(0..100),
            self.random.random_range(0..3),
            self.random.random_range(1..8),
        );
        let mut keys = self.run.keys.lock().expect("the keys");
        let keys = keys.entry(purpose.to_owned()).or_default();
        let place = match choice {
            0..25 => often,
            25..60 => keys.len().saturating_sub(back),
            _ => keys.len(),
        };
        if let Some(used) = keys.get(place) {
            return used.clone();
        }
        keys.push(new.clone());
        new
    }

    /// Makes a call, waits for its answer or gives up, and writes down what came of it.
    pub(super) async fn ask<R, T, F>(
        &mut self,
        mut call: Asked,
        request: R,
        make: impl FnOnce(Request<R>) -> F,
        fill: impl FnOnce(&T, &mut Asked, Micros),
    ) -> Option<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut request = Request::new(request);
        let (gives_up, deadline) = match self.random.random_range(0..100) {
            chosen if chosen < self.impatience / 2 => (Some(self.millis(30)), None),
            chosen if chosen < self.impatience => (None, Some(self.millis(40))),
            _ => (None, None),
        };
        // A caller waits for ever only if the server does not answer, which the deadline makes impossible.
        request.set_timeout(deadline.unwrap_or(Duration::from_secs(20)));
        let asked = self.run.now();
        let leaves = async {
            match gives_up {
                Some(after) => tokio::time::sleep(after).await,
                None if self.leaves_at_the_end => self.until.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            answer = make(request) => Some(answer),
            () = leaves => None,
        };
        let answered = self.run.now();
        let (verdict, answer) = match answer {
            None => (Verdict::Unknown("given up".to_owned()), None),
            Some(Err(status)) => (call.verdict(&status), None),
            Some(Ok(response)) => (Verdict::Done, Some(response.into_inner())),
        };
        if let Some(answer) = &answer {
            fill(answer, &mut call, answered);
        }
        self.record(call, asked, verdict);
        answer
    }

    /// Writes down what came of a call, now.
    pub(super) fn record(&self, call: Asked, asked: Micros, verdict: Verdict) {
        let (who, answered) = (self.who.clone(), self.run.now());
        let Asked { what, whole, key, repeated, parts } = call;
        self.run.record(Call { who, what, asked, answered, verdict, whole, key, repeated, parts });
    }
}

/// A call that is about to be made.
pub(super) struct Asked {
    pub(super) what: &'static str,
    pub(super) whole: bool,
    pub(super) key: Option<String>,
    /// Whether the answer says that it is an earlier one's.
    pub(super) repeated: bool,
    pub(super) parts: Vec<Part>,
}

impl Asked {
    pub(super) fn new(what: &'static str, parts: Vec<Part>) -> Self {
        Self { what, whole: false, key: None, repeated: false, parts }
    }

    pub(super) fn whole(what: &'static str, parts: Vec<Part>) -> Self {
        Self { whole: true, ..Self::new(what, parts) }
    }

    fn verdict(&self, status: &Status) -> Verdict {
        let settles = self.parts.iter().any(|part| matches!(part, Part::Settle(_)));
        verdict(status, settles && !self.whole)
    }
}

/// What an error says about the call.
///
/// Without our `ErrorInfo` it says nothing, whatever its code is: transports make errors too.
pub(super) fn verdict(status: &Status, settles: bool) -> Verdict {
    let details = status.get_error_details();
    let Some(info) = details.error_info().filter(|info| info.domain == "pgmq.v1") else {
        return Verdict::Unknown(format!("{:?} by the transport", status.code()));
    };
    verdict_of_reason(&info.reason, settles)
}

/// The same of a reason.
pub(super) fn verdict_of_reason(reason: &str, settles: bool) -> Verdict {
    match reason {
        "OUTCOME_UNKNOWN" | "OUTCOME_UNKNOWN_RETRY_SAFE" | "DEADLINE_EXCEEDED" | "INTERNAL" => {
            Verdict::Unknown(reason.to_owned())
        }
        // Of several messages some may be settled.
        "QUEUE_BUSY" | "DATABASE_RESOURCES" | "STORAGE_FULL" | "REFUSED_BY_DATABASE" if settles => {
            Verdict::Unknown(reason.to_owned())
        }
        _ => Verdict::Refused(reason.to_owned()),
    }
}

pub(super) fn connection(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy()
}

/// A moment of the wire in microseconds.
pub(super) fn micros(moment: Option<prost_types::Timestamp>) -> Micros {
    moment.map_or(0, |moment| moment.seconds * 1_000_000 + i64::from(moment.nanos / 1_000))
}

/// A delivery as it came over the wire.
pub(super) fn delivery(message: &Message, seen: Micros) -> Delivery {
    Delivery {
        msg_id: message.msg_id,
        read_ct: message.read_ct,
        enqueued_at: micros(message.enqueued_at),
        last_read_at: micros(message.last_read_at),
        vt: micros(message.vt),
        body: message.message.clone(),
        seen,
    }
}

/// An outcome as it came over the wire.
pub(super) fn outcome(outcome: WireOutcome) -> Option<Outcome> {
    match outcome {
        WireOutcome::Done => Some(Outcome::Done),
        WireOutcome::NotFound => Some(Outcome::NotFound),
        WireOutcome::Stale => Some(Outcome::Stale),
        WireOutcome::Unspecified => None,
    }
}
