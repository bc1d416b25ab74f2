//! What goes wrong in the shop, as a real Prometheus with the chart's rules and a real Jaeger show it. The rules' durations are divided by 60. All
//! checks share one world, since its start takes longer than most of them.

mod panels;
mod traces;
mod trouble;
mod world;

use self::world::World;

#[tokio::test]
async fn prometheus_and_jaeger_show_what_goes_wrong_in_the_shop_and_where() {
    let world = World::start();
    world.everything_is_scraped().await;
    let user = world.register().await;
    let orders = traces::failing_orders(&world, &user).await;
    // Spans come in batches every five seconds, and alerts after some more.
    tokio::join!(
        traces::each_failing_step_is_the_only_error_of_one_trace(&world, &orders),
        traces::a_slow_bucket_leads_to_a_trace(&world),
        traces::a_repair_is_a_request_to_nats_within_its_reconcile(&world),
        trouble::each_fires_its_alert_and_resolves_it(&world, &user),
    );
    trouble::a_stream_that_is_deleted_past_the_operator_fires_its_alert(&world).await;
    panels::none_is_empty(&world).await;
    trouble::a_killed_nats_server_fires_its_alert(&world).await;
    world.no_sample_was_lost().await;
    world.end();
}
