//! What a `Consume` stream may do when: its phases, and what each input does in each of them. No input and no output
//! happens here.

use crate::domain::{Error, Kind};

/// The most credit that may be unused, and the most of one `credit`.
pub const MAX_CREDIT: usize = 1_000;

/// Who decides how many messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowControl {
    /// The server, by the stream's window.
    Automatic,
    /// The client, by its credit.
    Manual,
}

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing but `start` may come.
    Opening,
    /// Messages and results go out.
    Delivering,
    /// The client wants no more messages; results go out.
    Stopped,
    /// The server wants to end the stream; results go out for a while.
    Closing,
    /// No command is read any more; results that are due go out, and then the end.
    Finishing,
}

/// What happens to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// The command `start`.
    Start(FlowControl),
    /// The command `settle` or `extend`.
    Settle,
    /// The command `credit`.
    Credit(usize),
    /// The command `stop`.
    Stop,
    /// The command `heartbeat`.
    Heartbeat,
    /// A command that this server does not know.
    Unknown,
    /// The client sends no more commands.
    HalfClose,
    /// The server wants to end the stream.
    Close,
    /// What `Close` allowed for settles is over.
    GraceOver,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Nothing.
    None,
    /// Open the queue and say `started`.
    Open,
    /// Settle, and say the result.
    Settle,
    /// More messages may be asked for.
    Demand,
    /// No more messages: take back what was not taken, and say `stopped`.
    SayStopped,
    /// No more messages: take back what was not taken, and say `closing`.
    SayClosing,
    /// No more messages and no more commands: take back what was not taken.
    Finish,
}

/// The state of a stream.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    flow: FlowControl,
    credit: usize,
    failure: Option<Error>,
}

impl Machine {
    /// A stream whose headers went out.
    pub(super) fn new() -> Self {
        Self { phase: Phase::Opening, flow: FlowControl::Automatic, credit: 0, failure: None }
    }

    /// Where the stream is.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes an input.
    pub(super) fn on(&mut self, input: Input) -> Reaction {
        use Phase::{Closing, Delivering, Finishing, Opening, Stopped};
        match (self.phase, input) {
            (Finishing, _) => Reaction::None,
            (Opening, Input::Start(flow)) => {
                (self.phase, self.flow) = (Delivering, flow);
                Reaction::Open
            }
            (Opening, Input::HalfClose) => self.finish(),
            (Opening, Input::Close) => self.fail(Error::draining()),
            (Opening, Input::GraceOver) => self.refuse("start did not come in time"),
            (Opening, _) => self.refuse("the first command must be start"),
            (_, Input::Start(_)) => self.refuse("start may come only once"),
            (_, Input::Unknown) => self.refuse("this server does not know the command, or there is none"),
            (_, Input::Settle) => Reaction::Settle,
            (_, Input::Heartbeat) => Reaction::None,
            (_, Input::Credit(more)) => self.credit(more),
            (_, Input::HalfClose) => self.finish(),
            (Delivering, Input::Stop) => {
                self.phase = Stopped;
                Reaction::SayStopped
            }
            (Stopped | Closing, Input::Stop) => Reaction::SayStopped,
            (Delivering | Stopped, Input::Close) => {
                self.phase = Closing;
                Reaction::SayClosing
            }
            (Closing, Input::GraceOver) => self.finish(),
            (Closing, Input::Close) | (Delivering | Stopped, Input::GraceOver) => Reaction::None,
        }
    }

    /// Ends the stream with an error, once the results that are due have gone out. The first error counts.
    pub(super) fn fail(&mut self, error: Error) -> Reaction {
        if self.phase != Phase::Finishing {
            self.failure = Some(error);
        }
        self.finish()
    }

    /// How many messages may be asked for when the window has so much room.
    pub(super) fn demand(&self, room: usize) -> usize {
        match (self.phase, self.flow) {
            (Phase::Delivering, FlowControl::Automatic) => room,
            (Phase::Delivering, FlowControl::Manual) => room.min(self.credit),
            _ => 0,
        }
    }

    /// Counts messages that were put on their way.
    pub(super) fn delivered(&mut self, count: usize) {
        self.credit = self.credit.saturating_sub(count);
    }

    /// Gives credit back for messages that were taken back from their way.
    pub(super) fn taken_back(&mut self, count: usize) {
        if self.flow == FlowControl::Manual {
            self.credit += count;
        }
    }

    /// Whether commands are read.
    pub(super) fn takes_commands(&self) -> bool {
        self.phase != Phase::Finishing
    }

    /// How the stream ends, if it is to end now that so many commands have no result yet and so many messages are
    /// unsettled.
    pub(super) fn end(&mut self, unanswered: usize, unsettled: usize) -> Option<Result<(), Error>> {
        let over = match self.phase {
            Phase::Opening | Phase::Delivering | Phase::Stopped => false,
            Phase::Closing => unanswered == 0 && unsettled == 0,
            Phase::Finishing => unanswered == 0,
        };
        over.then(|| self.failure.take().map_or(Ok(()), Err))
    }

    fn credit(&mut self, more: usize) -> Reaction {
        if self.flow == FlowControl::Automatic {
            return self.refuse("credit belongs to MANUAL flow control");
        }
        if self.phase != Phase::Delivering {
            // It crossed the end of the messages on its way.
            return Reaction::None;
        }
        if self.credit + more > MAX_CREDIT {
            return self.refuse("more credit than 1,000 is unused");
        }
        self.credit += more;
        Reaction::Demand
    }

    fn refuse(&mut self, why: &str) -> Reaction {
        self.fail(Error::new(Kind::StreamProtocol, why))
    }

    fn finish(&mut self) -> Reaction {
        if self.phase == Phase::Finishing {
            return Reaction::None;
        }
        self.phase = Phase::Finishing;
        Reaction::Finish
    }
}

#[cfg(test)]
mod tests {
    use super::FlowControl::{Automatic, Manual};
    use super::Input::{Close, Credit, GraceOver, HalfClose, Heartbeat, Settle, Start, Stop, Unknown};
    use super::Phase::{Closing, Delivering, Finishing, Opening, Stopped};
    use super::*;

    /// A stream in a phase, which it reached as streams do.
    fn machine(phase: Phase, flow: FlowControl) -> Machine {
        let mut machine = Machine::new();
        let inputs: &[Input] = match phase {
            Opening => &[],
            Delivering => &[Start(flow)],
            Stopped => &[Start(flow), Stop],
            Closing => &[Start(flow), Close],
            Finishing => &[Start(flow), HalfClose],
        };
        for input in inputs {
            machine.on(*input);
        }
        assert_eq!(machine.phase(), phase);
        machine
    }

    /// What an input leads to: the next phase, the reaction, and the kind of the error if it ends the stream.
    type Transition = (Phase, Reaction, Option<Kind>);

    const REFUSED: Transition = (Finishing, Reaction::Finish, Some(Kind::StreamProtocol));
    const IGNORED_WHEN_FINISHING: Transition = (Finishing, Reaction::None, None);

    fn expected(phase: Phase, flow: FlowControl, input: Input) -> Transition {
        let stays = |reaction| (phase, reaction, None);
        match (phase, input) {
            (Finishing, _) => IGNORED_WHEN_FINISHING,
            (Opening, Start(_)) => (Delivering, Reaction::Open, None),
            (Opening, HalfClose) => (Finishing, Reaction::Finish, None),
            (Opening, Close) => (Finishing, Reaction::Finish, Some(Kind::Draining)),
            (Opening, Settle | Credit(_) | Stop | Heartbeat | Unknown | GraceOver) => REFUSED,
            (Delivering | Stopped | Closing, Start(_) | Unknown) => REFUSED,
            (Delivering | Stopped | Closing, Settle) => stays(Reaction::Settle),
            (Delivering | Stopped | Closing, Heartbeat) => stays(Reaction::None),
            (Delivering | Stopped | Closing, HalfClose) => (Finishing, Reaction::Finish, None),
            (Delivering | Stopped | Closing, Credit(_)) if flow == Automatic => REFUSED,
            (Delivering, Credit(count)) if count > MAX_CREDIT => REFUSED,
            (Delivering, Credit(_)) => stays(Reaction::Demand),
            (Stopped | Closing, Credit(_)) => stays(Reaction::None),
            (Delivering, Stop) => (Stopped, Reaction::SayStopped, None),
            (Stopped | Closing, Stop) => stays(Reaction::SayStopped),
            (Delivering | Stopped, Close) => (Closing, Reaction::SayClosing, None),
            (Closing, Close) => stays(Reaction::None),
            (Delivering | Stopped, GraceOver) => stays(Reaction::None),
            (Closing, GraceOver) => (Finishing, Reaction::Finish, None),
        }
    }

    #[test]
    fn every_input_in_every_phase_does_what_the_contract_says() {
        let inputs = [
            Start(Automatic),
            Start(Manual),
            Settle,
            Credit(1),
            Credit(MAX_CREDIT),
            Credit(MAX_CREDIT + 1),
            Stop,
            Heartbeat,
            Unknown,
            HalfClose,
            Close,
            GraceOver,
        ];
        for phase in [Opening, Delivering, Stopped, Closing, Finishing] {
            for (flow, input) in
                [Automatic, Manual].into_iter().flat_map(|flow| inputs.map(|input| (flow, input)))
            {
                let mut machine = machine(phase, flow);
                let reaction = machine.on(input);
                let failure = machine.failure.as_ref().map(Error::kind);
                let found = (machine.phase(), reaction, failure);
                assert_eq!(found, expected(phase, flow, input), "{phase:?}, {flow:?}: {input:?}");
            }
        }
    }

    #[test]
    fn credit_is_used_up_by_messages_and_comes_back_with_those_that_were_not_taken() {
        let mut machine = machine(Delivering, Manual);
        assert_eq!(machine.demand(10_000), 0);
        assert_eq!(machine.on(Credit(3)), Reaction::Demand);
        assert_eq!((machine.demand(10_000), machine.demand(2)), (3, 2));
        machine.delivered(2);
        assert_eq!(machine.demand(10_000), 1);
        machine.taken_back(2);
        assert_eq!(machine.demand(10_000), 3);
        assert_eq!(machine.on(Credit(MAX_CREDIT - 2)), Reaction::Finish);
        assert_eq!(machine.demand(10_000), 0);
    }

    #[test]
    fn only_a_delivering_stream_wants_messages() {
        for phase in [Opening, Stopped, Closing, Finishing] {
            assert_eq!(machine(phase, Automatic).demand(7), 0, "{phase:?}");
        }
        assert_eq!(machine(Delivering, Automatic).demand(7), 7);
    }

    #[test]
    fn a_stream_ends_when_nothing_is_due_any_more() {
        for phase in [Opening, Delivering, Stopped] {
            assert!(machine(phase, Manual).end(0, 0).is_none(), "{phase:?}");
        }
        let mut closing = machine(Closing, Manual);
        assert!(closing.end(1, 0).is_none() && closing.end(0, 1).is_none());
        assert!(closing.end(0, 0).is_some_and(|end| end.is_ok()));
        let mut finishing = machine(Finishing, Manual);
        assert!(finishing.end(1, 0).is_none());
        assert!(finishing.end(0, 1).is_some_and(|end| end.is_ok()));
    }

    #[test]
    fn the_first_error_ends_the_stream_after_its_results() {
        let mut machine = machine(Delivering, Automatic);
        machine.fail(Error::queue_not_found("orders"));
        machine.fail(Error::deadline_exceeded());
        assert!(!machine.takes_commands());
        assert!(machine.end(1, 0).is_none());
        let end = machine.end(0, 1).expect("an end").expect_err("an error");
        assert_eq!(end.kind(), Kind::QueueNotFound);
    }
}
