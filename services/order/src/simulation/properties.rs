use proptest::{bool::weighted, collection::vec, prelude::*};

use super::{
    Fate, MAX_CONCURRENT, Simulation,
    world::{ARTICLES, World},
};

/// More answers than an attempt asks for.
const MAX_ANSWERS: usize = 16;

/// Something that happens. Numbers choose among what there is at that moment.
#[derive(Clone, Debug)]
enum Move {
    Deliver,
    Compensate,
    /// An attempt goes on for so many answers, while the others stand still.
    Advance(usize, usize),
    /// A request does not get its answer.
    Fail(usize, Fate),
    Land(usize),
    TimeOut(usize),
    Kill(usize),
    UserExists(bool),
    Trade(usize, bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let any_index = || 0..MAX_CONCURRENT + 2;
    let fate = prop_oneof![Just(Fate::AnswerLost), Just(Fate::Lost), Just(Fate::Late)];
    let next = prop_oneof![
        5 => Just(Move::Deliver),
        5 => Just(Move::Compensate),
        20 => (any_index(), 1..MAX_ANSWERS).prop_map(|(index, answers)| Move::Advance(index, answers)),
        4 => (any_index(), fate).prop_map(|(index, fate)| Move::Fail(index, fate)),
        2 => any_index().prop_map(Move::Land),
        1 => any_index().prop_map(Move::TimeOut),
        2 => any_index().prop_map(Move::Kill),
        4 => any::<bool>().prop_map(Move::UserExists),
        2 => (0..ARTICLES.len(), any::<bool>()).prop_map(|(article, takes)| Move::Trade(article, takes)),
    ];
    vec(next, 0..60)
}

fn make(simulation: &mut Simulation, next: &Move) {
    let chosen = |index: usize, of: usize| (of > 0).then(|| index % of.max(1));
    let attempt = |simulation: &Simulation, index| {
        chosen(index, simulation.attempts.len()).map(|index| simulation.attempts[index].id)
    };
    match *next {
        Move::Deliver => drop(simulation.deliver()),
        Move::Compensate => drop(simulation.compensate()),
        Move::Advance(index, answers) => {
            if let Some(attempt) = attempt(simulation, index) {
                let mut left = answers;
                simulation.advance(attempt, |_| {
                    left -= 1;
                    left == 0
                });
            }
        }
        Move::Fail(index, fate) => {
            let pending = simulation.network().pending.len();
            if let Some(index) = chosen(index, pending) {
                simulation.serve(index, fate);
            }
        }
        Move::Land(index) => {
            let late = simulation.network().late.len();
            if let Some(index) = chosen(index, late) {
                simulation.land(index);
            }
        }
        Move::TimeOut(index) => {
            if let Some(attempt) = attempt(simulation, index) {
                simulation.time_out(attempt);
            }
        }
        Move::Kill(index) => {
            if let Some(attempt) = attempt(simulation, index) {
                simulation.kill(attempt);
            }
        }
        Move::UserExists(exists) => simulation.network().world.user_exists = exists,
        Move::Trade(article, takes) => simulation.network().world.trade(ARTICLES[article], takes),
    }
}

#[test]
fn whatever_happens_to_its_attempts_an_order_ends_once_and_keeps_nothing_but_what_its_end_says() {
    proptest!(ProptestConfig::with_cases(256), |(declines in weighted(0.2), moves in moves())| {
        let mut simulation = Simulation::new(World { gateway_declines: declines, ..World::new() });
        simulation.deliver();
        for next in &moves {
            make(&mut simulation, next);
            let ends = simulation.network().world.ends.len();
            prop_assert!(ends <= 1, "{} ends", ends);
        }
        simulation.settle();
        prop_assert_eq!(simulation.check_settled(), Ok(()));
    });
}
