//! The saga's handlers on the model, as a pod calls them: what becomes of their events.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jetwright_proto::events::v1::{FulfilmentStep, OrderPlaced, OrderRejected};
use jetwright_runtime::testing::{self, HandlerTest, Settled, TestEvent};
use prometheus_client::registry::Registry;

use super::{
    ports::{ModelPorts, Network},
    world::{ORDER, World, placed},
};
use crate::{
    order::OrderResult,
    saga::{
        COMPENSATION, FULFILMENT,
        compensation::Compensation,
        fulfilment::{Fulfilment, UNDECIDED_REASON},
        steps::StepMetrics,
    },
};

fn ports(world: World) -> ModelPorts {
    let mut network = Network::new(world);
    network.answers_at_once = true;
    ModelPorts { network: Arc::new(Mutex::new(network)), attempt: 1 }
}

fn network(ports: &ModelPorts) -> MutexGuard<'_, Network> {
    ports.network.lock().unwrap()
}

fn fulfilment(ports: &ModelPorts) -> HandlerTest<Fulfilment<ModelPorts>> {
    let handler = Fulfilment {
        ports: ports.clone(),
        metrics: StepMetrics::register(&mut Registry::default()),
        handler_deadline: Duration::from_secs(20),
    };
    HandlerTest::new(FULFILMENT, handler).stream("orders").max_attempts(3)
}

fn compensation(ports: &ModelPorts) -> HandlerTest<Compensation<ModelPorts>> {
    HandlerTest::new(COMPENSATION, Compensation { ports: ports.clone() }).stream("orders").max_attempts(3)
}

fn rejected() -> OrderRejected {
    OrderRejected {
        order_id: ORDER.to_owned(),
        step: FulfilmentStep::UserValidation.into(),
        reason: "no such user".to_owned(),
        rejected_at: 1,
    }
}

fn placed_event() -> TestEvent {
    testing::event(&format!("orders.{ORDER}.placed"), &placed())
}

fn rejected_event() -> TestEvent {
    testing::event(&format!("orders.{ORDER}.rejected"), &rejected())
}

/// How an attempt ends that is tried again as the second or third one.
fn retried(error: &str) -> [Settled; 2] {
    [500, 1000].map(|milliseconds| Settled::retried(Duration::from_millis(milliseconds), error))
}

#[tokio::test]
async fn an_order_that_no_attempt_can_decide_is_rejected_by_the_last_one_and_no_dead_letter() {
    let ports = ports(World::new());
    network(&ports).gateway_away = true;
    let outcomes = fulfilment(&ports).deliver_until_settled(placed_event()).await;
    let [first, second] = retried("no answer");
    assert_eq!(outcomes, [first, second, Settled::Acknowledged]);
    let ends = network(&ports).world.ends.clone();
    let [OrderResult::Rejected(OrderRejected { step, reason, .. })] = ends.as_slice() else {
        panic!("{ends:?}")
    };
    let undecided = (FulfilmentStep::PaymentAuthorization.into(), UNDECIDED_REASON);
    assert_eq!((*step, reason.as_str()), undecided);
}

#[tokio::test]
async fn a_delivery_to_another_pod_is_no_reason_to_reject_an_order() {
    let ports = ports(World::new());
    network(&ports).gateway_away = true;
    let outcome = fulfilment(&ports).deliver(placed_event().deliveries(3)).await;
    assert_eq!(outcome, Settled::retried(Duration::from_secs(2), "no answer"));
    assert_eq!(network(&ports).world.ends, []);
}

#[tokio::test]
async fn an_order_that_its_stream_does_not_show_is_a_dead_letter_after_its_last_attempt() {
    let ports = ports(World { is_placed: false, ..World::new() });
    let mut fulfilment = fulfilment(&ports);
    let error = "the order is not in its stream yet";
    let [first, second] = retried(error);
    let expected = [first, second, Settled::dead_lettered("last-attempt", error)];
    assert_eq!(fulfilment.deliver_until_settled(placed_event()).await, expected);
    let letters = fulfilment.dead_letters().events();
    assert_eq!(letters.iter().map(testing::RecordedEvent::decode).collect::<Vec<_>>(), [Ok(placed())]);
}

#[tokio::test]
async fn the_rejection_of_an_order_that_was_never_placed_is_a_dead_letter_and_undoes_nothing() {
    let ports = ports(World { is_placed: false, ..World::new() });
    let mut compensation = compensation(&ports);
    let expected = Settled::dead_lettered("permanent", "the rejected order was never placed");
    assert_eq!(compensation.deliver(rejected_event()).await, expected);
    assert_eq!(compensation.dead_letters().events()[0].decode(), Ok(rejected()));
    let world = &network(&ports).world;
    assert_eq!((world.notifications, &world.stocks), (0, &World::new().stocks));
}

#[tokio::test]
async fn a_compensation_without_a_gateway_notifies_at_once_and_again_when_all_is_undone() {
    let ports = ports(World { ends: vec![OrderResult::Rejected(rejected())], ..World::new() });
    let mut compensation = compensation(&ports);
    network(&ports).gateway_away = true;
    assert_eq!(compensation.deliver(rejected_event()).await, retried("no answer")[0]);
    assert_eq!(compensation.deliver(rejected_event().attempt(2)).await, retried("no answer")[1]);
    assert_eq!(network(&ports).world.notifications, 1);
    network(&ports).gateway_away = false;
    assert_eq!(compensation.deliver(rejected_event().attempt(3)).await, Settled::Acknowledged);
    assert_eq!(network(&ports).world.notifications, 2);
    assert_eq!(network(&ports).world.check_settled(), Ok(()));
}

#[tokio::test]
async fn events_about_another_order_than_their_subject_says_are_dead_letters() {
    let ports = ports(World::new());
    let expected = Settled::dead_lettered("permanent", "order_id is not the subject's");
    let placed = testing::event("orders.7.placed", &OrderPlaced { order_id: "8".to_owned(), ..placed() });
    assert_eq!(fulfilment(&ports).deliver(placed).await, expected);
    let rejected = testing::event("orders.7.rejected", &rejected());
    assert_eq!(compensation(&ports).deliver(rejected).await, expected);
    assert_eq!(network(&ports).world.ends, []);
}
