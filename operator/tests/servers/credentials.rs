//! The operator where the servers ask who it is.

use std::{fs, time::Duration};

use async_nats::{
    ConnectOptions,
    jetstream::{self, stream},
};
use data_encoding::BASE64;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{
    Authority, Folder, JwtAccount, MountedSecret, NatsServer, Process, await_until, binary,
};

use crate::world::{SOON, World};

/// What the operator may do, and no more: docs/operator.md.
const PUBLISH: [&str; 13] = [
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.CREATE.*",
    "$JS.API.STREAM.UPDATE.*",
    "$JS.API.STREAM.DELETE.*",
    "$JS.API.CONSUMER.LIST.*",
    "$JS.API.CONSUMER.INFO.*.*",
    "$JS.API.CONSUMER.CREATE.*.*",
    "$JS.API.CONSUMER.PAUSE.*.*",
    "$JS.API.CONSUMER.DELETE.*.*",
    "$KV.jetwright.>",
    "$JS.API.STREAM.MSG.GET.KV_jetwright",
    "$JS.FC.KV_jetwright.>",
];
const SUBSCRIBE: [&str; 2] = ["$JS.EVENT.ADVISORY.>", "_INBOX_operator.>"];
/// Objects say that NATS is away when it has been for ten seconds.
const SAID: Duration = Duration::from_secs(40);

/// An account with JetStream in which the test may do everything, and the operator what is said here.
fn users(password: &str, publish: &[&str], subscribe: &[&str]) -> String {
    format!(
        "accounts: {{ main: {{ jetstream: enabled, users: [\n\
         {{user: admin, password: admin}}\n\
         {{user: operator, password: {password}, permissions: {{publish: {{allow: {publish:?}}}, subscribe: {{allow: {subscribe:?}}}}}}}\n\
         ] }} }}\n"
    )
}

fn admin() -> ConnectOptions {
    ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned())
}

fn secret(password: &str) -> MountedSecret {
    let prefix = ("inbox-prefix", "_INBOX_operator\n");
    MountedSecret::new(&[("username", "operator\n"), ("password", password), prefix])
}

/// A server with this configuration, and an operator with these credentials.
async fn world(config: &str, admin: ConnectOptions, secret: &MountedSecret) -> World {
    let nats = NatsServer::builder().config(config).start().await;
    let jetstream = jetstream::new(nats.client_with(admin).await);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    World::on(nats, jetstream, &[&folder]).await
}

/// Waits until `/readyz` answers so, with these words.
async fn await_readyz(world: &World, status: u16, words: &str) -> String {
    await_until(&format!("/readyz says {words:?}"), SOON, || async {
        let (found, text) = world.admin("/readyz").await.ok_or("no answer")?;
        if found == status && text.contains(words) { Ok(text) } else { Err(format!("{found} {text}")) }
    })
    .await
}

/// Waits until the object says that NATS is not there, with these words.
async fn await_disconnected(world: &World, words: &str) {
    await_until(&format!("Disconnected, {words:?}"), SAID, || async {
        let object = world.streams().get("orders").await.map_err(|error| error.to_string())?;
        let conditions = crate::world::conditions(&object);
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        let told = ready.is_some_and(|ready| ready.reason == "Disconnected" && ready.message.contains(words));
        if told { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
}

async fn works(world: &World) {
    await_readyz(world, 200, "ok").await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn the_permissions_in_the_documentation_are_enough_for_all_that_the_operator_does() {
    let secret = secret("pw");
    let world = world(&users("pw", &PUBLISH, &SUBSCRIBE), admin(), &secret).await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    // What others change is told by advisories, since the next comparison is a minute away.
    let edited = stream::Config { max_messages: 3, ..world.config("orders").await };
    world.jetstream.update_stream(edited).await.unwrap();
    world.await_config("orders", |config| config.max_messages == -1).await;
    world.consumer("reader", "{streamRef: {name: orders}, ackWait: 7s}").await;
    world.await_ready::<EventConsumer>("reader").await;
    world.delete::<EventConsumer>("reader").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventConsumer>("reader").await;
    world.await_gone::<EventStream>("orders").await;
    assert!(world.jetstream.get_stream("orders").await.is_err());
    let log = world.nats.process().log();
    assert!(!log.contains("ermissions Violation"), "{log}");
}

#[tokio::test]
async fn a_jwt_a_key_and_a_token_are_taken_as_passwords_are() {
    let account = JwtAccount::default();
    let everything = account.user(&[">"], &[">"]);
    let jwt = account.user(&PUBLISH, &["$JS.EVENT.ADVISORY.>", "_INBOX.>"]);
    let key = nkeys::KeyPair::new_user();
    let users = format!("users: [{{nkey: {}}}, {{user: admin, password: admin}}]", key.public_key());
    let of_token = ConnectOptions::with_token("t0k3n".to_owned());
    for (config, admin, file, content) in [
        (account.config(), ConnectOptions::with_credentials(&everything).unwrap(), "user.creds", jwt),
        (format!("authorization: {{ {users} }}"), admin(), "nkey", key.seed().unwrap()),
        ("authorization: { token: t0k3n }".to_owned(), of_token, "token", "t0k3n\n".to_owned()),
    ] {
        let secret = MountedSecret::new(&[(file, &content)]);
        works(&world(&config, admin, &secret).await).await;
    }
}

#[tokio::test]
async fn tls_is_used_with_an_authority_and_a_client_certificate_of_the_folder() {
    let (folder, authority) = (Folder::new("tls"), Authority::new("ours"));
    let file = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name)
    };
    let (server, admin, own) = (authority.sign("nats"), authority.sign("admin"), authority.sign("operator"));
    let ca = file("ca.crt", authority.pem());
    let config = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {ca:?}, verify_and_map: true }}\n\
         authorization: {{ users: [{{user: \"CN=operator\"}}, {{user: \"CN=admin\"}}] }}",
        file("server.crt", &server.certificate),
        file("server.key", &server.key),
    );
    let options = || {
        let (certificate, key) = (file("admin.crt", &admin.certificate), file("admin.key", &admin.key));
        ConnectOptions::new().add_root_certificates(ca.clone()).add_client_certificate(certificate, key)
    };
    let certificate = [("tls.crt", own.certificate.as_str()), ("tls.key", own.key.as_str())];
    let stranger = Authority::new("theirs");
    let secret = MountedSecret::new(&[&[("ca.crt", stranger.pem())], &certificate[..]].concat());
    let world = world(&config, options(), &secret).await;
    await_readyz(&world, 503, "invalid peer certificate: UnknownIssuer").await;
    // The certificates are read again, too.
    secret.change(&[&[("ca.crt", authority.pem())], &certificate[..]].concat());
    works(&world).await;
}

#[tokio::test]
async fn refused_credentials_are_named_in_readiness_and_conditions_and_once_in_the_log() {
    let secret = secret("hunter2");
    let world = world(&users("pw", &PUBLISH, &SUBSCRIBE), admin(), &secret).await;
    world.stream("orders", "subjects: [orders.*]").await;
    let refused =
        format!("NATS refuses the credentials in {} (username and password)", secret.path().display());
    await_readyz(&world, 503, &refused).await;
    await_disconnected(&world, &refused).await;
    let log = world.operator.log();
    assert_eq!(log.matches("NATS refuses the credentials").count(), 1, "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    secret.change(&[("username", "operator"), ("password", "pw"), ("inbox-prefix", "_INBOX_operator")]);
    works(&world).await;
}

#[tokio::test]
async fn a_rotated_password_is_used_without_a_restart_and_a_file_that_is_missing_is_named() {
    let secret = secret("old");
    let world = world(&users("old", &PUBLISH, &SUBSCRIBE), admin(), &secret).await;
    works(&world).await;
    world.nats.stop().await;
    world.nats.reconfigure(&users("new", &PUBLISH, &SUBSCRIBE));
    secret.change(&[("username", "operator")]);
    world.nats.start_again().await;
    let missing = format!("{}/password (--nats-credentials-folder): missing", secret.path().display());
    await_disconnected(&world, &missing).await;
    assert_eq!(world.admin("/readyz").await.unwrap().0, 200);
    secret.change(&[("username", "operator"), ("password", "new"), ("inbox-prefix", "_INBOX_operator")]);
    world.await_ready::<EventStream>("orders").await;
    let log = world.operator.log();
    assert_eq!(log.matches("password (--nats-credentials-folder): missing").count(), 1, "{log}");
}

#[tokio::test]
async fn a_request_that_is_not_permitted_is_named_in_the_condition() {
    let config = users("pw", &["$JS.API.STREAM.INFO.*", "$JS.API.STREAM.LIST"], &SUBSCRIBE);
    let secret = secret("pw");
    let world = world(&config, admin(), &secret).await;
    world.stream("orders", "subjects: [orders.*]").await;
    let message = world.await_condition::<EventStream>("orders", "Ready", "False", "Refused").await;
    let words = "does not permit this program's user to publish to $JS.API.STREAM.CREATE.orders";
    assert!(message.contains(words), "{message}");
    // Permissions that are given later need no restart.
    world.nats.reconfigure(&users("pw", &PUBLISH, &SUBSCRIBE));
    world.nats.process().signal("HUP");
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn an_operator_that_may_not_hear_answers_says_so_and_recovers_when_it_may() {
    let config = users("pw", &PUBLISH, &["$JS.EVENT.ADVISORY.>", "_INBOX_other.>"]);
    let secret = secret("pw");
    let world = world(&config, admin(), &secret).await;
    world.stream("orders", "subjects: [orders.*]").await;
    await_disconnected(&world, "does not permit this program's user to subscribe to _INBOX_operator.").await;
    world.nats.reconfigure(&users("pw", &PUBLISH, &SUBSCRIBE));
    world.nats.process().signal("HUP");
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn no_failure_puts_a_secret_into_the_log_however_much_is_logged() {
    const EVERYTHING: &str = "off,jetwright_operator=trace,jetwright_nats=trace,jetwright_process=trace";
    let (wrong, right, of_workload) = ("canary-wrong-9c4a", "canary-right-7b1f", "canary-environment-5d2e");
    let config = |publish: &[&str]| format!("{}no_auth_user: admin\n", users(right, publish, &SUBSCRIBE));
    let secret = secret(wrong);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let program = Process::builder(binary("jetwright-operator")).env("RUST_LOG", EVERYTHING).arg(folder);
    let world = World::of(program, NatsServer::builder().config(&config(&PUBLISH)).start().await).await;
    await_readyz(&world, 503, "NATS refuses the credentials").await;
    secret.change(&[("username", "operator"), ("password", right), ("inbox-prefix", "_INBOX_operator")]);
    works(&world).await;

    // Kubernetes refuses the name of the container.
    let container =
        format!("{{name: Not_A_Name, image: a, env: [{{name: PASSWORD, value: {of_workload}}}]}}");
    let workload = format!("workload: {{template: {{spec: {{containers: [{container}]}}}}}}");
    world.consumer("mails", &format!("{{streamRef: {{name: orders}}, {workload}}}")).await;
    let refused = world.await_condition::<EventConsumer>("mails", "Ready", "False", "Refused").await;
    assert!(refused.contains("Not_A_Name"), "{refused}");

    // What the operator may not do; then nobody answers, and then nobody is there.
    world.nats.reconfigure(&config(&["$JS.API.STREAM.INFO.*", "$JS.API.STREAM.LIST"]));
    world.nats.process().signal("HUP");
    // Before that, the stream would be permitted yet.
    world.nats.process().await_log("Reloaded server configuration", SOON).await;
    world.stream("payments", "subjects: [payments.*]").await;
    world.await_condition::<EventStream>("payments", "Ready", "False", "Refused").await;
    world.nats.process().signal("STOP");
    // It takes up to ten seconds until the operator is sure of it.
    let unavailable = ("Ready", "Unknown", "JetStreamUnavailable");
    world.await_condition_within::<EventStream>(SAID, "payments", unavailable).await;
    world.nats.kill();
    world.operator.await_log("disconnected from NATS", SOON).await;

    let log = world.operator.log();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        for canary in [wrong, right, of_workload] {
            for form in [canary.to_owned(), BASE64.encode(canary.as_bytes())] {
                assert!(!line.to_string().contains(&form), "{form} is in {line}");
            }
        }
    }
    // Each failure has a line that says what failed and why.
    let failures: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["message"] == "reconcile failed")
        .collect();
    for (object, why) in [("/mails.", "Not_A_Name"), ("/payments.", "does not permit")] {
        let has =
            |text: &serde_json::Value, part: &str| text.as_str().is_some_and(|text| text.contains(part));
        let is_such =
            |line: &&serde_json::Value| has(&line["span"]["object.ref"], object) && has(&line["error"], why);
        assert!(failures.iter().any(|line| is_such(&line)), "{object}: {failures:#?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_its_credentials_is_told_at_once_and_without_them() {
    let control_plane = crate::world::control_plane().await;
    let secret = MountedSecret::new(&[("username", ""), ("token", "hunter2"), ("ca.crt", "hunter2")]);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let wrong = [
        (
            vec!["--nats-url=nats://127.0.0.1:1", folder.as_str()],
            vec![
                "several ways to authenticate: username, token",
                "username (--nats-credentials-folder): empty",
                "ca.crt",
            ],
        ),
        (
            vec!["--nats-url=nats://operator:hunter2@127.0.0.1:1"],
            vec![
                "--nats-url: an address has a user, password or token, which belong into the files of --nats-credentials-folder",
            ],
        ),
    ];
    for (flags, told) in wrong {
        let operator = Process::builder(binary("jetwright-operator"))
            .env("KUBECONFIG", control_plane.kubeconfig())
            .args(["--leader-elect=false", "--admin-address=127.0.0.1:0"])
            .args(flags)
            .start();
        assert_eq!(operator.wait_exit(SOON).await.code(), Some(1));
        let log = operator.log();
        assert!(told.iter().all(|words| log.contains(words)), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
    }
}
