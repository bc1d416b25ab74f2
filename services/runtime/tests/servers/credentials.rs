//! Services where the servers ask who they are.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use async_nats::{
    ConnectOptions,
    jetstream::{self, kv},
};
use jetwright_crds::environment::NATS_CREDENTIALS;
use jetwright_nats::Credentials;
use jetwright_runtime::ErrorKind;
use jetwright_testing::{Authority, Folder, JwtAccount, MountedSecret, NatsServer, await_until};
use prost::Message;
use tokio::time::sleep;

use crate::support::{Bench, Number, Running, SOON, Scripted, number_headers, publish};

/// What a service of the tests may do, and no more: docs/environment.md.
const PUBLISH: [&str; 8] = [
    "numbers.*",
    "$JS.API.STREAM.MSG.GET.numbers",
    "$JS.API.CONSUMER.INFO.numbers.tests",
    "$JS.API.CONSUMER.MSG.NEXT.numbers.tests",
    "$JS.ACK.numbers.tests.>",
    "$JS.ACK.*.*.numbers.tests.>",
    "$KV.state.>",
    "$JS.API.STREAM.MSG.GET.KV_state",
];
const INBOX: &str = "_INBOX_service";

/// An account with JetStream in which the test may do everything, and the service what is said here.
fn users(password: &str, publish: &[&str], subscribe: &str) -> String {
    format!(
        "accounts: {{ main: {{ jetstream: enabled, users: [\n\
         {{user: admin, password: admin}}\n\
         {{user: service, password: {password}, permissions: {{publish: {{allow: {publish:?}}}, subscribe: {subscribe:?}}}}}\n\
         ] }} }}\n"
    )
}

fn admin() -> ConnectOptions {
    ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned())
}

/// A server with this configuration, the stream, and its consumer.
async fn bench(config: &str, admin: ConnectOptions) -> Bench {
    let nats = NatsServer::builder().config(config).start().await;
    let client = nats.client_with(admin).await;
    let bench = Bench::on(nats, jetstream::new(client)).await;
    bench.create_consumer().await;
    bench
}

fn opened(secret: &MountedSecret) -> Credentials {
    Credentials::open(NATS_CREDENTIALS, secret.path()).unwrap()
}

/// Publishes and consumes one event.
async fn works(service: &Running, handler: &Scripted, value: u64) {
    service.await_ready().await;
    publish(&service.publisher, value).await;
    await_until("the event", SOON, async || {
        let values = handler.values();
        if values.contains(&value) { Ok(()) } else { Err(format!("{values:?}")) }
    })
    .await;
}

#[tokio::test]
async fn the_permissions_in_the_documentation_are_enough_for_all_that_a_service_does() {
    let mut bench = bench(&users("pw", &PUBLISH, &format!("{INBOX}.>")), admin()).await;
    let config = kv::Config { bucket: "state".to_owned(), ..kv::Config::default() };
    bench.jetstream.create_key_value(config).await.unwrap();
    let secret = MountedSecret::new(&[
        ("username", "service\n"),
        ("password", "pw\n"),
        ("inbox-prefix", "_INBOX_service\n"),
    ]);
    bench.credentials = Some(opened(&secret));
    // The first attempt fails, so that the event is also put off.
    let handler = Scripted::new(|_, attempt| async move {
        if attempt == 1 { Err(jetwright_runtime::HandlerError::transient("not yet")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    works(&service, &handler, 1).await;
    bench.await_drained().await;
    assert_eq!(service.reader.history("numbers", "numbers.1").await.unwrap().events.len(), 1);
    let revision = service.state.create("a", "1").await.unwrap();
    let revision = service.state.update("a", "2", revision).await.unwrap();
    assert_eq!(service.state.get("a").await.unwrap().unwrap().value, "2");
    service.state.delete("a", revision).await.unwrap();
    service.stop().await;
    let log = bench.nats.process().log();
    assert!(!log.contains("ermissions Violation"), "{log}");
}

#[tokio::test]
async fn a_jwt_a_key_and_a_token_are_taken_as_passwords_are() {
    let account = JwtAccount::default();
    let everything = account.user(&[">"], &[">"]);
    let jwt = account.user(&PUBLISH, &["_INBOX.>"]);
    let key = nkeys::KeyPair::new_user();
    let authorization = |users: &str| format!("authorization: {{ {users} }}\n");
    let keys =
        authorization(&format!("users: [{{nkey: {}}}, {{user: admin, password: admin}}]", key.public_key()));
    let of_token = ConnectOptions::with_token("t0k3n".to_owned());
    for (config, admin, file, content) in [
        (account.config(), ConnectOptions::with_credentials(&everything).unwrap(), "user.creds", jwt),
        (keys, admin(), "nkey", key.seed().unwrap()),
        (authorization("token: t0k3n"), of_token, "token", "t0k3n".to_owned()),
    ] {
        let mut bench = bench(&config, admin).await;
        bench.credentials = Some(opened(&MountedSecret::new(&[(file, &content)])));
        // The folder is gone: it is read at the connect, and that is told.
        let handler = Scripted::content();
        let service = bench.run(&handler).await;
        service.await_unready(NATS_CREDENTIALS).await;
        service.stop().await;
        let secret = MountedSecret::new(&[(file, &format!("{content}\n"))]);
        bench.credentials = Some(opened(&secret));
        let service = bench.run(&handler).await;
        works(&service, &handler, 2).await;
        service.stop().await;
    }
}

/// Writes the server's files, and what its configuration is to say of them.
fn tls(folder: &Path, servers: &Authority, clients: &Authority, rest: &str) -> String {
    let server = servers.sign("nats");
    let files =
        [("cert_file", server.certificate), ("key_file", server.key), ("ca_file", clients.pem().to_owned())];
    let settings = files.map(|(setting, content)| {
        let path = folder.join(format!("{setting}.pem"));
        fs::write(&path, content).unwrap();
        format!("{setting}: {:?}", path.display().to_string())
    });
    format!("tls {{ {}, {rest} }}\n", settings.join(", "))
}

#[tokio::test]
async fn tls_is_used_with_an_authority_and_a_client_certificate_of_the_folder() {
    let (folder, authority, stranger) =
        (Folder::new("tls"), Authority::new("ours"), Authority::new("theirs"));
    let users = "authorization: { users: [{user: \"CN=service\"}, {user: \"CN=admin\"}] }\n";
    let config = tls(folder.path(), &authority, &authority, "verify_and_map: true") + users;
    let (admin, own) = (authority.sign("admin"), authority.sign("service"));
    let file = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name)
    };
    let options = ConnectOptions::new()
        .add_root_certificates(file("ca.crt", authority.pem()))
        .add_client_certificate(file("admin.crt", &admin.certificate), file("admin.key", &admin.key));
    let mut bench = bench(&config, options).await;
    let handler = Scripted::content();

    let certificate = [("tls.crt", own.certificate.as_str()), ("tls.key", own.key.as_str())];
    let trusting = |authority: &'static str| format!("invalid peer certificate: {authority}");
    for (files, reason) in [
        ([&[("ca.crt", stranger.pem())], &certificate[..]].concat(), trusting("UnknownIssuer")),
        (vec![("ca.crt", authority.pem())], "CertificateRequired".to_owned()),
    ] {
        let secret = MountedSecret::new(&files);
        bench.credentials = Some(opened(&secret));
        let service = bench.run(&handler).await;
        service.await_unready(&reason).await;
        service.stop().await;
    }
    let all = [&[("ca.crt", authority.pem())], &certificate[..]].concat();
    let secret = MountedSecret::new(&all);
    bench.credentials = Some(opened(&secret));
    let service = bench.run(&handler).await;
    works(&service, &handler, 3).await;

    // The certificates are read at every connect, too.
    bench.nats.stop().await;
    secret.change(&certificate);
    bench.nats.start_again().await;
    service.await_unready(&format!("{}/ca.crt (NATS_CREDENTIALS): missing", secret.path().display())).await;
    secret.change(&all);
    works(&service, &handler, 4).await;
    service.stop().await;
}

#[tokio::test]
async fn readiness_says_that_the_servers_refuse_the_credentials_or_ask_for_some() {
    let mut bench = bench(&users("pw", &PUBLISH, "_INBOX.>"), admin()).await;
    let service = bench.run(&Scripted::content()).await;
    service
        .await_unready(
            "NATS asks for credentials, and there are none: authorization violation; set NATS_CREDENTIALS",
        )
        .await;
    service.stop().await;
    let secret = MountedSecret::new(&[("username", "service"), ("password", "hunter2")]);
    bench.credentials = Some(opened(&secret));
    let service = bench.run(&Scripted::content()).await;
    let reason =
        format!("NATS refuses the credentials in {} (username and password)", secret.path().display());
    service.await_unready(&reason).await;
    let told = format!("{:?}", service.health.ready());
    assert!(!told.contains("hunter2"), "{told}");
    service.stop().await;
}

#[tokio::test]
async fn a_rotated_password_is_used_without_a_restart_and_a_file_that_is_missing_is_named() {
    let mut bench = bench(&users("old", &PUBLISH, "_INBOX.>"), admin()).await;
    let secret = MountedSecret::new(&[("username", "service"), ("password", "old")]);
    bench.credentials = Some(opened(&secret));
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    works(&service, &handler, 1).await;

    bench.nats.stop().await;
    bench.nats.reconfigure(&users("new", &PUBLISH, "_INBOX.>"));
    secret.change(&[("username", "service")]);
    bench.nats.start_again().await;
    let missing = format!("{}/password (NATS_CREDENTIALS): missing", secret.path().display());
    service.await_unready(&missing).await;
    secret.change(&[("username", "service"), ("password", "old")]);
    service.await_unready("NATS refuses the credentials").await;
    secret.change(&[("username", "service"), ("password", "new")]);
    works(&service, &handler, 2).await;
    service.stop().await;
}

#[tokio::test]
async fn a_publish_that_is_not_permitted_says_so_at_once() {
    let mut bench = bench(&users("pw", &["numbers.1", "$JS.API.>", "$JS.ACK.>"], "_INBOX.>"), admin()).await;
    let secret = MountedSecret::new(&[("username", "service"), ("password", "pw")]);
    bench.credentials = Some(opened(&secret));
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    works(&service, &handler, 1).await;
    let begun = Instant::now();
    let options = jetwright_runtime::PublishOptions::default();
    let refused = service.publisher.publish("numbers.2", &Number { value: 2 }, options).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert!(
        refused.to_string().contains("does not permit this program's user to publish to numbers.2"),
        "{refused}"
    );
    // A request that nobody answers takes two seconds.
    assert!(begun.elapsed().as_secs() < 2, "{:?}", begun.elapsed());
    // All else goes on.
    publish(&service.publisher, 1).await;
    handler.await_calls(2).await;
    service.stop().await;
}

#[tokio::test]
async fn what_a_consumer_is_not_permitted_closes_its_gate_with_the_subject() {
    for (missing, subject) in [
        ("$JS.API.CONSUMER.INFO.numbers.tests", "to publish to $JS.API.CONSUMER.INFO.numbers.tests"),
        ("$JS.API.CONSUMER.MSG.NEXT.numbers.tests", "to publish to $JS.API.CONSUMER.MSG.NEXT.numbers.tests"),
        ("$JS.ACK.numbers.tests.>", "to publish to $JS.ACK.numbers.tests.1.1.1."),
    ] {
        let permitted: Vec<_> = PUBLISH.into_iter().filter(|subject| *subject != missing).collect();
        let mut bench = bench(&users("pw", &permitted, "_INBOX.>"), admin()).await;
        let secret = MountedSecret::new(&[("username", "service"), ("password", "pw")]);
        bench.credentials = Some(opened(&secret));
        bench.jetstream.publish("numbers.1", "".into()).await.unwrap().await.unwrap();
        let service = bench.run(&Scripted::content()).await;
        service.await_unready(subject).await;
        // Permissions that are given later need no restart.
        bench.nats.reconfigure(&users("pw", &PUBLISH, "_INBOX.>"));
        bench.nats.process().signal("HUP");
        service.await_ready().await;
        bench.await_drained().await;
        service.stop().await;
    }
}

#[tokio::test]
async fn an_acknowledgement_that_is_not_permitted_lets_no_later_event_of_its_key_begin() {
    let permitted: Vec<_> = PUBLISH.into_iter().filter(|subject| !subject.starts_with("$JS.ACK")).collect();
    let nats = NatsServer::builder().config(&users("pw", &permitted, "_INBOX.>")).start().await;
    let client = nats.client_with(admin()).await;
    let mut bench = Bench::on(nats, jetstream::new(client)).await.ack_wait(2_000).ordered();
    bench.create_consumer().await;
    let secret = MountedSecret::new(&[("username", "service"), ("password", "pw")]);
    bench.credentials = Some(opened(&secret));
    for value in 0..2 {
        let event = Number { value }.encode_to_vec().into();
        bench
            .jetstream
            .publish_with_headers("numbers.1", number_headers(), event)
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_unready("to publish to $JS.ACK.numbers.tests.1.1.1.").await;
    sleep(Duration::from_secs(3)).await;
    assert!(handler.values().iter().all(|value| *value == 0), "{:?}", handler.values());
    bench.nats.reconfigure(&users("pw", &PUBLISH, "_INBOX.>"));
    bench.nats.process().signal("HUP");
    bench.await_drained().await;
    let values = handler.values();
    assert!(values.is_sorted() && values.last() == Some(&1), "{values:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_service_that_may_not_hear_answers_says_so_and_recovers_when_it_may() {
    let mut bench = bench(&users("pw", &PUBLISH, "_INBOX_other.>"), admin()).await;
    let secret = MountedSecret::new(&[("username", "service"), ("password", "pw")]);
    bench.credentials = Some(opened(&secret));
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_unready("does not permit this program's user to subscribe to _INBOX.").await;
    let options = jetwright_runtime::PublishOptions::default();
    let unheard = service.publisher.publish("numbers.1", &Number { value: 1 }, options).await.unwrap_err();
    assert_eq!(unheard.kind(), ErrorKind::Unavailable, "{unheard}");
    assert!(unheard.to_string().contains("to subscribe to _INBOX."), "{unheard}");
    bench.nats.reconfigure(&users("pw", &PUBLISH, "_INBOX.>"));
    bench.nats.process().signal("HUP");
    works(&service, &handler, 2).await;
    service.stop().await;
}
