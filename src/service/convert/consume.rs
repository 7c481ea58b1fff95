//! `Consume` on the wire.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tonic::Streaming;

use super::Fields;
use super::message::{each, known, queue_name};
use super::read::{closing, heartbeat, heartbeat_pause, in_flight_limit, read_order};
use super::settle::{receipts, release_delay};
use super::time::{duration, span};
use crate::domain::bounds::{self, MAX_VISIBILITY, VisibilityTimeout};
use crate::domain::dead_letter::Cause;
use crate::domain::{Error, Invalid, Kind, QueueName, Result, Settlement};
use crate::proto::v1;
use crate::proto::v1::consume_request::Command as Wire;
use crate::queue::{
    Change, Command, CommandResult, ConsumeOptions, FlowControl, MAX_CREDIT, Piece, Rules, Settle,
};
use crate::service::RequestId;
use crate::service::call::check_named;
use crate::service::status::{of_broken_stream, to_command_error};

/// How long messages are kept hidden after their delivery, unless told otherwise.
const DEFAULT_MAX_EXTENSION: Duration = Duration::from_hours(1);

/// The commands of one stream. What they mean depends on its queue, which the first one names.
pub(in crate::service) struct Commands {
    stream: Streaming<v1::ConsumeRequest>,
    /// The queue that the call's metadata names, if it does.
    named: Option<Bytes>,
    queue: Option<(QueueName, VisibilityTimeout)>,
    rules: Rules,
}

impl Commands {
    /// The commands of a call that names a queue in its metadata, or does not.
    pub(in crate::service) fn new(
        stream: Streaming<v1::ConsumeRequest>,
        named: Option<Bytes>,
        rules: Rules,
    ) -> Self {
        Self { stream, named, queue: None, rules }
    }

    fn parse(&mut self, request: v1::ConsumeRequest) -> Command {
        let request_id = request.request_id;
        match request.command {
            None => Command::Unknown,
            Some(Wire::Start(start)) => Command::Start(Box::new(self.start(start))),
            Some(Wire::Settle(wanted)) => {
                let settle =
                    self.checked("settle.", |fields, queue, _| settle(fields, queue, request_id, wanted));
                Command::Settle { request_id, settle }
            }
            Some(Wire::Extend(wanted)) => {
                let settle = self.checked("extend.", |fields, queue, timeout| {
                    extend(fields, queue, timeout, request_id, wanted)
                });
                Command::Settle { request_id, settle }
            }
            Some(Wire::Credit(credit)) => Command::Credit(self.checked_alone(|fields| {
                let limit = i32::try_from(MAX_CREDIT).unwrap_or(i32::MAX);
                let count = fields.take("credit.messages", bounds::positive(credit.messages, limit));
                count.and_then(|count| usize::try_from(count).ok())
            })),
            Some(Wire::Stop(v1::Stop {})) => Command::Stop,
            Some(Wire::Heartbeat(v1::ClientHeartbeat {})) => Command::Heartbeat,
        }
    }

    fn start(&mut self, start: v1::ConsumeStart) -> Result<ConsumeOptions> {
        let mut fields = Fields::default();
        let (named, rules) = (self.named.as_deref(), &self.rules);
        let options = fields.within("start.", |fields| {
            if let Some(named) = named {
                check_named(fields, named, &start.queue);
            }
            options(fields, rules, start)
        });
        let options = fields.finish(options)?;
        if self.queue.is_none() {
            self.queue = Some((options.order.queue.clone(), options.order.visibility_timeout));
        }
        Ok(options)
    }

    /// Checks the fields of a command that is about the stream's queue.
    fn checked<T>(
        &self,
        path: &str,
        check: impl FnOnce(&mut Fields, &QueueName, VisibilityTimeout) -> Option<T>,
    ) -> Result<T> {
        let Some((queue, timeout)) = &self.queue else {
            return Err(Error::new(Kind::StreamProtocol, "the first command must be start"));
        };
        self.checked_alone(|fields| fields.within(path, |fields| check(fields, queue, *timeout)))
    }

    fn checked_alone<T>(&self, check: impl FnOnce(&mut Fields) -> Option<T>) -> Result<T> {
        let mut fields = Fields::default();
        let value = check(&mut fields);
        fields.finish(value)
    }
}

impl Stream for Commands {
    type Item = Result<Command>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        Pin::new(&mut this.stream).poll_next(context).map(|request| match request? {
            Ok(request) => Some(Ok(this.parse(request))),
            // A client that has vanished says nothing more, and hears nothing.
            Err(status) => of_broken_stream(status).map(Err),
        })
    }
}

fn options(fields: &mut Fields, rules: &Rules, start: v1::ConsumeStart) -> Option<ConsumeOptions> {
    let v1::ConsumeStart {
        queue,
        visibility_timeout,
        conditional,
        ordering,
        max_in_flight,
        heartbeat_interval,
        flow_control,
        auto_extend,
        max_extension,
    } = start;
    let queue = queue_name(fields, queue);
    let policy = rules.policy_of_named(queue.as_ref());
    let order = read_order(fields, queue, &policy, visibility_timeout, ordering, conditional);
    let max_in_flight = in_flight_limit(fields, max_in_flight);
    let heartbeat_interval = heartbeat_pause(fields, heartbeat_interval);
    let flow_control =
        fields.take("flow_control", known::<v1::FlowControl>(flow_control)).map(|flow| match flow {
            v1::FlowControl::Unspecified | v1::FlowControl::Automatic => FlowControl::Automatic,
            v1::FlowControl::Manual => FlowControl::Manual,
        });
    let max_extension = match max_extension {
        None => Some(DEFAULT_MAX_EXTENSION),
        Some(_) if !auto_extend => {
            fields.refuse(
                "max_extension",
                Invalid::new(Kind::ConflictingFields, "works with auto_extend only"),
            );
            None
        }
        Some(given) => {
            let extension = span(given).and_then(|given| bounds::positive_span(given, MAX_VISIBILITY));
            fields.take("max_extension", extension)
        }
    };
    Some(ConsumeOptions {
        order: order?,
        max_in_flight: max_in_flight?,
        heartbeat_interval: heartbeat_interval?,
        flow_control: flow_control?,
        auto_extend: max_extension.filter(|_| auto_extend),
    })
}

fn settle(fields: &mut Fields, queue: &QueueName, request_id: u64, wanted: v1::Settle) -> Option<Settle> {
    let receipts = receipts(fields, Some(queue), &wanted.receipts);
    let action = fields.take("action", known::<v1::SettleAction>(wanted.action));
    if wanted.delay.is_some() && action != Some(v1::SettleAction::Release) {
        fields.refuse("delay", Invalid::new(Kind::ConflictingFields, "works with RELEASE only"));
    }
    if !wanted.reason.is_empty() && action != Some(v1::SettleAction::DeadLetter) {
        fields.refuse("reason", Invalid::new(Kind::ConflictingFields, "works with DEAD_LETTER only"));
    }
    let change = match action? {
        v1::SettleAction::Unspecified => {
            fields.refuse("action", Invalid::new(Kind::MissingField, "an action is needed"));
            None
        }
        v1::SettleAction::Delete => Some(Change::Delete),
        v1::SettleAction::Archive => Some(Change::Archive),
        v1::SettleAction::Release => {
            release_delay(fields, wanted.delay).map(|delay_ms| Change::Release { delay_ms })
        }
        v1::SettleAction::GiveBack => Some(Change::GiveBack),
        v1::SettleAction::DeadLetter => {
            fields.take("reason", Cause::requested(wanted.reason)).map(Change::DeadLetter)
        }
    };
    Some(Settle { request_id, receipts: receipts?, change: change? })
}

fn extend(
    fields: &mut Fields,
    queue: &QueueName,
    timeout: VisibilityTimeout,
    request_id: u64,
    wanted: v1::Extend,
) -> Option<Settle> {
    let receipts = receipts(fields, Some(queue), &wanted.receipts);
    let hidden = match wanted.visibility_timeout {
        None => Ok(timeout.span()),
        Some(given) => span(given).and_then(|given| bounds::positive_span(given, MAX_VISIBILITY)),
    };
    let hidden = hidden.and_then(|hidden| bounds::millis(hidden, MAX_VISIBILITY));
    let hidden = fields.take("visibility_timeout", hidden);
    let change = Change::Reschedule(Settlement::HiddenForMillis(hidden?));
    Some(Settle { request_id, receipts: receipts?, change })
}

fn command_result(result: CommandResult, stream: &RequestId) -> v1::CommandResult {
    let request_id = result.request_id;
    match result.results {
        Ok(results) => v1::CommandResult { request_id, results: each(results), error: None },
        Err(error) => {
            let error = Some(to_command_error(error, stream));
            v1::CommandResult { request_id, results: Vec::new(), error }
        }
    }
}

/// What a stream has ready as a reply; `started` is for the caller to add. Its messages are the client's from here on.
/// Failures of the server's own are logged under the id of the stream.
pub(in crate::service) fn consume_response(piece: Piece, stream: &RequestId) -> v1::ConsumeResponse {
    v1::ConsumeResponse {
        messages: piece.messages.map(|messages| each(messages.hand_over())).unwrap_or_default(),
        started: None,
        heartbeat: piece.heartbeat.map(heartbeat),
        closing: piece.closing.map(|end| v1::Closing {
            settle_grace: duration(end.settle_grace),
            ..closing(end.reason, end.retry_delay)
        }),
        command_results: piece.results.into_iter().map(|result| command_result(result, stream)).collect(),
        stopped: piece.stopped.then_some(v1::Stopped {}),
    }
}
