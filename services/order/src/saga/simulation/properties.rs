//! Whatever happens, it ends well: the moves of a case, and the property.

use proptest::{bool::weighted, collection::vec, prelude::*};

use super::{
    Consumer, Fate, Simulation,
    world::{ARTICLES, Request, World},
};

/// A move of the simulation. Numbers choose among what exists at that moment.
#[derive(Clone, Debug)]
enum Move {
    /// An attempt runs, while the others stand still.
    Turn(Whose, Until, Then),
    Land(usize),
    UserExists(bool),
    GatewayAway(bool),
    Trade(usize, bool),
}

/// Whose turn it is.
#[derive(Clone, Debug)]
enum Whose {
    /// An attempt that begins.
    New(Consumer),
    /// One that is under way.
    Running(usize),
}

/// How far an attempt runs.
#[derive(Clone, Copy, Debug)]
enum Until {
    Answers(usize),
    /// Up to a request of this kind.
    Next(fn(&Request) -> bool),
    End,
}

/// What happens to the attempt at the end of its turn.
#[derive(Clone, Debug)]
enum Then {
    /// It stands still, perhaps for long.
    Stall,
    Kill,
    TimeOut,
    /// One of its requests does not get its response.
    Fail(usize, Fate),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let whose = prop_oneof![
        4 => Just(Whose::New(Consumer::Fulfilment)),
        3 => Just(Whose::New(Consumer::Compensation)),
        4 => (0..4_usize).prop_map(Whose::Running),
    ];
    let fate = prop_oneof![Just(Fate::AnswerLost), Just(Fate::Lost), Just(Fate::Late)];
    let then = prop_oneof![
        6 => Just(Then::Stall),
        2 => Just(Then::Kill),
        1 => Just(Then::TimeOut),
        4 => (0..2_usize, fate).prop_map(|(index, fate)| Then::Fail(index, fate)),
    ];
    let kinds: [fn(&Request) -> bool; 7] = [
        |request| matches!(request, Request::GetStock(_)),
        |request| matches!(request, Request::IsCurrent(_)),
        |request| matches!(request, Request::UpdateStock(..)),
        |request| matches!(request, Request::Authorize),
        |request| matches!(request, Request::RecordPayment(_)),
        |request| matches!(request, Request::EndOrder(..)),
        |request| matches!(request, Request::Void),
    ];
    let until = prop_oneof![
        1 => (0..16_usize).prop_map(Until::Answers),
        3 => proptest::sample::select(kinds.to_vec()).prop_map(Until::Next),
        3 => Just(Until::End),
    ];
    let next = prop_oneof![
        12 => (whose, until, then).prop_map(|(whose, until, then)| Move::Turn(whose, until, then)),
        2 => (0..4_usize).prop_map(Move::Land),
        5 => weighted(0.25).prop_map(Move::UserExists),
        3 => weighted(0.6).prop_map(Move::GatewayAway),
        2 => (0..ARTICLES.len(), any::<bool>()).prop_map(|(article, takes)| Move::Trade(article, takes)),
    ];
    vec(next, 0..24)
}

fn chosen(index: usize, of: usize) -> Option<usize> {
    (of > 0).then(|| index % of.max(1))
}

fn make(simulation: &mut Simulation, next: &Move) {
    match next {
        Move::Turn(whose, until, then) => {
            let attempt = match whose {
                Whose::New(Consumer::Fulfilment) => simulation.deliver(),
                Whose::New(Consumer::Compensation) => simulation.compensate(),
                Whose::Running(index) => {
                    chosen(*index, simulation.attempts.len()).map(|index| simulation.attempts[index].id)
                }
            };
            if let Some(attempt) = attempt {
                turn(simulation, attempt, *until, then);
            }
        }
        Move::Land(index) => {
            let late = simulation.network().late.len();
            if let Some(index) = chosen(*index, late) {
                simulation.land(index);
            }
        }
        Move::UserExists(exists) => simulation.network().world.user_exists = *exists,
        Move::GatewayAway(away) => simulation.network().gateway_away = *away,
        Move::Trade(article, takes) => simulation.network().world.trade(ARTICLES[*article], *takes),
    }
}

fn turn(simulation: &mut Simulation, attempt: u64, until: Until, then: &Then) {
    let mut answered = 0;
    let goes_on = simulation.advance(attempt, |request| {
        answered += 1;
        match until {
            Until::Answers(answers) => answered > answers,
            Until::Next(is_kind) => is_kind(request),
            Until::End => false,
        }
    });
    match then {
        Then::Kill => simulation.kill(attempt),
        Then::TimeOut => simulation.time_out(attempt),
        Then::Fail(index, fate) if goes_on => {
            let pending = simulation.pending_of(attempt);
            let index = pending[*index % pending.len()];
            let is_notification = matches!(simulation.network().pending[index].request, Request::Notify);
            // A notification that does not reach its stream is lost by design: nobody repeats it.
            let fate = if is_notification && *fate == Fate::Lost { Fate::AnswerLost } else { *fate };
            simulation.serve(index, fate);
        }
        Then::Stall | Then::Fail(..) => {}
    }
}

#[test]
fn whatever_happens_to_its_attempts_an_order_ends_once_and_keeps_nothing_but_what_its_end_says() {
    proptest!(ProptestConfig::with_cases(256), |(declines in weighted(0.1), moves in moves())| {
        let mut simulation = Simulation::new(World { gateway_declines: declines, ..World::new() });
        for next in &moves {
            make(&mut simulation, next);
            let ends = simulation.network().world.ends.len();
            prop_assert!(ends <= 1, "{} ends", ends);
        }
        simulation.settle();
        prop_assert_eq!(simulation.check_settled(), Ok(()));
    });
}
