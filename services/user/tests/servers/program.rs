//! The program itself: how it starts, and how it ends.

use jetwright_process::{http, metrics};
use jetwright_testing::await_until;
use reqwest::StatusCode;

use crate::bench::{ANN, Bench, SOON, UserService};

#[tokio::test]
async fn wrong_settings_stop_it_at_the_start_with_every_mistake_named() {
    let bench = Bench::without_consumer().await;
    let program = bench.program();
    let process = program
        .env("NATS_URL", "")
        .env("JETWRIGHT_BINDINGS", "/nowhere.yaml")
        .env("USERS_HTTP_ADDRESS", "everywhere")
        .env("JETWRIGHT_ADMIN_ADDRESS", "9090")
        .env("LOG_LEVEL", "a=b=c")
        .start();
    assert_eq!(process.wait_exit(SOON).await.code(), Some(2));
    let log = process.log();
    for name in [
        "NATS_URL",
        "/nowhere.yaml",
        "http.address (USERS_HTTP_ADDRESS)",
        "JETWRIGHT_ADMIN_ADDRESS",
        "LOG_LEVEL",
    ] {
        assert!(log.lines().any(|line| line.contains(name)), "{name} not in:\n{log}");
    }
}

#[tokio::test]
async fn it_ends_when_asked_and_says_so_by_its_code() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    service.register(ANN).await;
    service.process.signal("TERM");
    assert_eq!(service.process.wait_exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn it_answers_new_callers_after_it_was_asked_to_stop_until_they_have_learnt_of_it() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    service.process.signal("TERM");
    await_until("readiness to be off", SOON, async || match service.ready().await {
        (StatusCode::SERVICE_UNAVAILABLE, body) if body["reasons"]["stopping"].is_string() => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    let user = service.register(ANN).await;
    let (status, shown) = service.show(user["id"].as_str().unwrap()).await;
    assert_eq!((status, &shown["email"]), (StatusCode::OK, &user["email"]));
    assert_eq!(service.process.wait_exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn it_runs_on_the_bindings_of_a_later_operator_and_warns_once_of_what_it_does_not_know() {
    let bench = Bench::start().await;
    let later = "    priority: {levels: 8}\nconnection: jetwright\nversion: 1\n";
    let service = UserService::start(bench.program_with(later)).await;
    service.await_ready().await;
    let user = service.register(ANN).await;
    bench.in_directory(user["id"].as_str().unwrap()).await;
    let log = service.process.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("JETWRIGHT_BINDINGS")).collect();
    let [warning] = warnings.as_slice() else { panic!("not one warning: {warnings:#?}") };
    assert!(warning.contains("bindings.user-directory.priority, connection"), "{warning}");
}

#[tokio::test]
async fn bindings_of_a_version_that_it_does_not_understand_stop_it_at_the_start() {
    let bench = Bench::without_consumer().await;
    let process = bench.program_with("version: 1000\n").start();
    assert_eq!(process.wait_exit(SOON).await.code(), Some(2));
    process.await_log("version (JETWRIGHT_BINDINGS): found 1000; expected", SOON).await;
}

#[tokio::test]
async fn it_starts_without_nats_and_is_ready_once_there_is_one() {
    let bench = Bench::start().await;
    bench.nats.stop().await;
    let service = UserService::start(bench.program()).await;
    let (status, body) = service.ready().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body["reasons"]["nats"].is_string(), "{body}");
    bench.nats.start_again().await;
    service.await_ready().await;
    service.register(ANN).await;
}

#[tokio::test]
async fn it_exports_what_the_catalogues_have_and_nothing_else() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let user = service.register(ANN).await;
    bench.in_directory(user["id"].as_str().unwrap()).await;
    let scraped = reqwest::get(format!("{}/metrics", service.admin)).await.unwrap().text().await.unwrap();
    let catalogues = [jetwright_runtime::METRICS, http::METRICS, metrics::program::CATALOGUE];
    assert_eq!(metrics::exposition::deviations(&scraped, &catalogues), [""; 0]);
    assert!(scraped.contains("http_server_request_duration_seconds_count"), "{scraped}");
}

#[tokio::test]
async fn it_says_how_it_is_called_and_refuses_what_it_does_not_know() {
    let bench = Bench::without_consumer().await;
    for (argument, code, told) in [
        ("--help", 0, "Usage: jetwright-user-service [COMMAND]"),
        ("--version", 0, "jetwright-user-service "),
        ("--directory", 2, "unexpected argument '--directory'"),
        ("rewind", 2, "unrecognized subcommand 'rewind'"),
    ] {
        let process = bench.program().arg(argument).start();
        assert_eq!(process.wait_exit(SOON).await.code(), Some(code), "{argument}");
        process.await_log(told, SOON).await;
    }
}
