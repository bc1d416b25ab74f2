//! The service of docs/writing-a-service.md, which shows it piece by piece: members join over HTTP, each is welcomed by an event, and
//! a list of them is kept for reading.

use std::{net::SocketAddr, process::ExitCode};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use jetwright_process::{
    configuration::{Problems, Reader},
    http::{HttpMetrics, Json, Path, Problem, with_defaults},
};
use jetwright_runtime::{
    Aggregate, Aggregates, App, ApplyError, Decision, Handler, HandlerError, Metadata, NewEvent, Projection,
    PublishOptions, Publisher, Setup, StoredEvent, View,
};
use serde::{Deserialize, Serialize};

// The events. A service of your own has them from prost-build.

#[derive(Clone, PartialEq, prost::Message)]
struct MemberJoined {
    #[prost(string, tag = "1")]
    name: String,
}

impl prost::Name for MemberJoined {
    const NAME: &'static str = "MemberJoined";
    const PACKAGE: &'static str = "club.v1";
}

#[derive(Clone, PartialEq, prost::Message)]
struct Welcome {
    #[prost(string, tag = "1")]
    text: String,
}

impl prost::Name for Welcome {
    const NAME: &'static str = "Welcome";
    const PACKAGE: &'static str = "club.v1";
}

// The handler.

struct Welcomer {
    publisher: Publisher,
}

impl Handler for Welcomer {
    type Event = MemberJoined;

    async fn handle(&self, member: MemberJoined, metadata: &Metadata) -> Result<(), HandlerError> {
        if member.name.is_empty() {
            return Err(HandlerError::permanent("a member without a name"));
        }
        let id = metadata.subject.split('.').nth(1).unwrap_or_default();
        let welcome = Welcome { text: format!("Welcome, {}!", member.name) };
        let options =
            PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
        self.publisher.publish(&format!("notices.{id}.welcome"), &welcome, options).await?;
        Ok(())
    }
}

// The projection.

struct MemberList;

#[derive(Clone, Serialize, Deserialize)]
struct Member {
    name: String,
}

impl Projection for MemberList {
    type Event = MemberJoined;
    type Entry = Member;
    const BUCKET: &'static str = "member-list";

    fn key(subject: &str) -> Option<&str> {
        subject.split('.').nth(1)
    }

    fn filter(id: &str) -> String {
        format!("members.{id}.>")
    }

    fn apply(
        member: Option<Member>,
        joined: MemberJoined,
        _: &StoredEvent,
    ) -> Result<Option<Member>, ApplyError> {
        if joined.name.is_empty() {
            return Err(ApplyError::new("a member without a name"));
        }
        // Who joins twice keeps the first name.
        Ok(Some(member.unwrap_or(Member { name: joined.name })))
    }
}

// What decides whether somebody may join.

#[derive(Clone, Default)]
struct Membership {
    has_joined: bool,
}

impl Aggregate for Membership {
    type Event = MemberJoined;

    fn apply(&mut self, _: MemberJoined, _: &StoredEvent) {
        self.has_joined = true;
    }
}

// The HTTP interface.

#[derive(Clone)]
struct Club {
    members: Aggregates<Membership>,
    list: View<MemberList>,
}

#[derive(Deserialize)]
struct NewMember {
    name: String,
}

async fn join(
    State(club): State<Club>,
    Path(id): Path<String>,
    Json(new): Json<NewMember>,
) -> Result<StatusCode, Problem> {
    check(&id)?;
    let decide = |membership: &Membership| -> Result<Decision<StatusCode>, Problem> {
        if membership.has_joined {
            return Ok(Decision::NoOp(StatusCode::OK));
        }
        let joined = MemberJoined { name: new.name.clone() };
        Ok(Decision::Append(NewEvent::new("joined", joined), StatusCode::CREATED))
    };
    Ok(club.members.update(&id, decide).await?.output)
}

async fn show(State(club): State<Club>, Path(id): Path<String>) -> Result<Json<Member>, Problem> {
    check(&id)?;
    let member = club.list.get(&id).await?.and_then(|found| found.entry);
    member.map(Json).ok_or_else(|| Problem::not_found("there is no such member"))
}

/// An id is one token of a subject, and a key.
fn check(id: &str) -> Result<(), Problem> {
    if id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Ok(());
    }
    Err(Problem::invalid("this is no id of a member").field("id", "must be letters, digits and hyphens"))
}

// The program.

const WELCOME: &str = "club-welcome";
const LIST: &str = "club-list";

#[tokio::main]
async fn main() -> ExitCode {
    App::new("club", &[WELCOME, LIST]).run(http_address(), setup).await
}

/// `CLUB_HTTP_ADDRESS`, or the default.
fn http_address() -> Result<SocketAddr, Problems> {
    let mut reader = Reader::open(None, "CLUB")?;
    let address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
    reader.finish().map(|()| address)
}

async fn setup(setup: &mut Setup, http_address: SocketAddr) -> anyhow::Result<()> {
    let service = &mut setup.service;
    let publisher = service.publisher();
    service.handle(WELCOME, Welcomer { publisher })?;
    service.project::<MemberList>(LIST)?;

    let stream = service.stream_of(LIST)?.to_owned();
    let club = Club { members: service.aggregates(&stream, "members"), list: service.view() };
    let routes = Router::new().route("/members/{id}", get(show).put(join));
    let routes = with_defaults(routes, HttpMetrics::register(&mut setup.registry));
    setup.serve_http(http_address, routes.with_state(club)).await
}

// Its tests.

#[cfg(test)]
mod tests {
    use jetwright_runtime::testing::{self, HandlerTest, RecordedPublisher, Settled, TestEvent};

    use super::*;

    fn joined(id: &str, name: &str) -> TestEvent {
        testing::event(&format!("members.{id}.joined"), &MemberJoined { name: name.to_owned() })
    }

    #[tokio::test]
    async fn a_member_is_welcomed_once_though_an_answer_of_nats_is_lost() {
        let published = RecordedPublisher::new();
        let mut welcome = HandlerTest::new(WELCOME, Welcomer { publisher: published.publisher() });
        published.lose_next_answers(1);
        let outcomes = welcome.deliver_until_settled(joined("ann", "Ann")).await;
        assert!(matches!(outcomes[..], [Settled::Retried { .. }, Settled::Acknowledged]), "{outcomes:?}");
        let notices = published.events();
        assert_eq!(notices.len(), 1);
        assert_eq!(notices[0].subject, "notices.ann.welcome");
        assert_eq!(notices[0].decode(), Ok(Welcome { text: "Welcome, Ann!".to_owned() }));
    }

    #[tokio::test]
    async fn a_member_without_a_name_is_a_dead_letter_and_not_welcomed() {
        let published = RecordedPublisher::new();
        let mut welcome = HandlerTest::new(WELCOME, Welcomer { publisher: published.publisher() });
        let outcome = welcome.deliver(joined("nobody", "")).await;
        assert_eq!(outcome, Settled::dead_lettered("permanent", "a member without a name"));
        assert_eq!(published.events(), []);
    }

    #[test]
    fn who_joins_twice_keeps_the_first_name() {
        let projected = testing::project::<MemberList>([joined("ann", "Ann"), joined("ann", "Anna")]);
        assert_eq!(projected.entry.map(|member| member.name).as_deref(), Some("Ann"));
    }
}
