//! Users and their changes. Pure: events and commands in, users and events out.

use std::str::FromStr;

use bytes::Bytes;
use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{Aggregate, DecodeError, Event, StoredEvent, decode};
use jiff::Timestamp;
use uuid::Uuid;

/// Maximum length of an address, and of the part before the @, in bytes (RFC 5321, 4.5.3.1).
const MAX_EMAIL_BYTES: usize = 254;
const MAX_LOCAL_PART_BYTES: usize = 64;
/// Maximum length of a domain label, in bytes (RFC 1035, 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// The prefix of the subjects of all users' events: `users.<user id>.<event>`.
pub(crate) const PREFIX: &str = "users";

/// Namespace of the ids of users that are registered under an idempotency key.
const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x0b0b_6c1e_77a5_4f0e_9d0a_3f5d_54c8_a1b7);

/// A registered user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) id: Uuid,
    pub(crate) email: Email,
    pub(crate) created_at: Timestamp,
}

/// The state of an id: a user, once one registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) user: Option<User>,
}

/// An event of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UserEvent {
    Created(User),
    /// Of a later type, which does not change what is known here.
    Later,
}

/// A well-formed email address; nothing proves that somebody reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Email(String);

/// The command to register a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) id: Uuid,
    pub(crate) email: Email,
    pub(crate) at: Timestamp,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Append this event, which makes this user.
    Append(UserCreated, User),
    /// It has happened before.
    Unchanged(User),
}

/// A user with this id is registered already, and with another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("registered with another address")]
pub(crate) struct AnotherEmail;

/// An event that no version of this service wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of a UserCreated: {reason}")]
pub(crate) struct Malformed {
    field: &'static str,
    reason: String,
}

/// All events of a user.
pub(crate) fn subjects(id: &str) -> String {
    format!("{PREFIX}.{id}.>")
}

/// The id of the user that is registered under this key, always the same; without a key a new one.
pub(crate) fn id(key: Option<&str>) -> Uuid {
    key.map_or_else(Uuid::now_v7, |key| Uuid::new_v5(&KEY_NAMESPACE, key.as_bytes()))
}

impl Event for UserEvent {
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
        match event_type {
            "events.v1.UserCreated" => {
                let user = User::try_from(&decode::<UserCreated>(payload)?);
                user.map(Self::Created).map_err(DecodeError::malformed)
            }
            _ => Ok(Self::Later),
        }
    }
}

impl Aggregate for Registration {
    type Event = UserEvent;

    fn apply(&mut self, event: UserEvent, _recorded: &StoredEvent) {
        match event {
            // A second creation changes nothing.
            UserEvent::Created(user) => {
                self.user.get_or_insert(user);
            }
            UserEvent::Later => {}
        }
    }
}

/// The result of registering, in this state.
pub(crate) fn decide(user: Option<&User>, command: &Register) -> Result<Decision, AnotherEmail> {
    match user {
        Some(user) if user.email == command.email => Ok(Decision::Unchanged(user.clone())),
        Some(_) => Err(AnotherEmail),
        None => {
            let Register { id, email, at } = command.clone();
            let created_at = milliseconds(at);
            let event = UserCreated {
                user_id: id.to_string(),
                email: email.0.clone(),
                created_at: at.as_millisecond(),
            };
            Ok(Decision::Append(event, User { id, email, created_at }))
        }
    }
}

/// The time in the precision of events, so that a user is the same before and after it is read back.
fn milliseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

impl TryFrom<&UserCreated> for User {
    type Error = Malformed;

    fn try_from(event: &UserCreated) -> Result<Self, Malformed> {
        let UserCreated { user_id, email, created_at } = event;
        let malformed = |field, reason: String| Malformed { field, reason };
        let id: Uuid =
            user_id.parse().map_err(|error: uuid::Error| malformed("user_id", error.to_string()))?;
        // One id has many spellings, and each would be a user of its own.
        if id.to_string() != *user_id {
            return Err(malformed("user_id", format!("must be spelt {id}")));
        }
        Ok(Self {
            id,
            // A valid address of the past stays valid, whatever rules came later.
            email: Email(email.clone()),
            created_at: Timestamp::from_millisecond(*created_at)
                .map_err(|error| malformed("created_at", error.to_string()))?,
        })
    }
}

impl Email {
    /// The address of an event or of the directory.
    pub(crate) fn known(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Email {
    type Err = &'static str;

    /// Trims white space. The error says what is expected.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (local, domain) =
            text.rsplit_once('@').ok_or("expected an address with an @, as in ann@example.org")?;
        if text.len() > MAX_EMAIL_BYTES || local.len() > MAX_LOCAL_PART_BYTES {
            return Err("expected at most 254 bytes, at most 64 of them before the @");
        }
        if !is_local(local) {
            return Err(
                "expected letters, digits and .!#$%&'*+/=?^_`{|}~- before the @, no dot at an end or beside another",
            );
        }
        if !domain.contains('.') || !domain.split('.').all(is_label) {
            return Err(
                "expected a domain after the @: letters, digits and hyphens between dots, as in example.org",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_local(local: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || "!#$%&'*+/=?^_`{|}~-".contains(c);
    local.split('.').all(|part| !part.is_empty() && part.chars().all(allowed))
}

fn is_label(label: &str) -> bool {
    let ends = label.starts_with('-') || label.ends_with('-');
    let allowed = label.chars().all(|c| c.is_alphanumeric() || c == '-');
    !label.is_empty() && label.len() <= MAX_LABEL_BYTES && !ends && allowed
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn ann() -> Register {
        let at = Timestamp::from_nanosecond(1_725_000_000_512_999_999).unwrap();
        Register { id: id(Some("ann")), email: "ann@example.org".parse().unwrap(), at }
    }

    fn created() -> UserCreated {
        let user_id = "1f5b3a5e-0a9c-5c3b-8a36-000000000001".to_owned();
        UserCreated { user_id, email: "ann@example.org".into(), created_at: 1_725_000_000_512 }
    }

    fn read(event: &UserCreated) -> Result<UserEvent, DecodeError> {
        UserEvent::decode("events.v1.UserCreated", event.encode_to_vec().into())
    }

    fn user() -> User {
        User::try_from(&created()).unwrap()
    }

    #[test]
    fn who_is_new_is_created_and_the_events_make_the_same_user() {
        let Ok(Decision::Append(event, user)) = decide(None, &ann()) else { panic!("not created") };
        let expected = UserCreated {
            user_id: ann().id.to_string(),
            email: "ann@example.org".into(),
            created_at: 1_725_000_000_512,
        };
        assert_eq!(event, expected);
        assert_eq!(read(&event), Ok(UserEvent::Created(user)));
    }

    #[test]
    fn registering_again_changes_nothing() {
        let again = Register { id: user().id, ..ann() };
        assert_eq!(decide(Some(&user()), &again), Ok(Decision::Unchanged(user())));
    }

    #[test]
    fn registering_again_with_another_address_is_refused() {
        let other = Register { email: "bob@example.org".parse().unwrap(), ..ann() };
        assert_eq!(decide(Some(&user()), &other), Err(AnotherEmail));
    }

    #[test]
    fn malformed_events_are_errors_and_those_of_later_types_are_not() {
        for user_id in
            ["ann".to_owned(), created().user_id.to_uppercase(), created().user_id.replace('-', "")]
        {
            let wrong = UserCreated { user_id, ..created() };
            assert!(read(&wrong).unwrap_err().to_string().starts_with("user_id of a UserCreated: "));
        }
        assert_eq!(UserEvent::decode("events.v1.UserMoved", vec![255].into()), Ok(UserEvent::Later));
    }

    #[test]
    fn one_key_is_one_user_and_no_key_is_always_another() {
        assert_eq!(id(Some("a")), id(Some("a")));
        assert_ne!(id(Some("a")), id(Some("b")));
        assert_ne!(id(None), id(None));
    }

    #[test]
    fn addresses_differ_from_what_is_none() {
        for right in
            ["ann@example.org", " ann@example.org\n", "a.b+c@x-y.example.org", "jürgen@müller.example"]
        {
            assert_eq!(right.parse::<Email>().map(|email| email.0), Ok(right.trim().to_owned()));
        }
        let long = format!("{}@example.org", "a".repeat(65));
        for wrong in [
            "",
            "ann",
            "@example.org",
            "ann@",
            "ann@example",
            "ann@@example.org",
            "a b@example.org",
            ".ann@example.org",
            "a..b@example.org",
            "ann@-x.org",
            "ann@example..org",
            "ann@example.org.",
            "ann@exa mple.org",
            "a\0@x.org",
            &long,
        ] {
            assert!(wrong.parse::<Email>().is_err(), "{wrong:?}");
        }
    }
}
