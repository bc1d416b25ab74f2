//! One page of events by DIRECT.GET (NATS ADR-31): one request, many messages, and a last one that ends the page.

use std::time::Duration;

use async_nats::{Client, Message, StatusCode, jetstream::message::StreamMessage};
use futures::StreamExt;
use jetwright_nats::{Connection, Violation, backoff::pause};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::StoredEvent;

/// Maximum events of one page.
pub(super) const PAGE_EVENTS: usize = 1000;
/// A page ends with the event that makes it this large, in bytes.
pub(super) const PAGE_BYTES: usize = 1 << 20;
/// Maximum time between two messages of a response.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// The events to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) stream: &'a str,
    /// May have wildcards.
    pub(super) filter: &'a str,
    pub(super) which: Which,
}

/// Which of the events under a filter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// Those that have at least this sequence, and `1/shares` of a whole page of them.
    From { sequence: u64, shares: usize },
    /// The newest event of each subject, of this many subjects.
    NewestOfSubjects(usize),
}

/// Events of one response.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// In the order of the stream, as the server that responded has them: none if it is behind.
    pub(super) events: Vec<StoredEvent>,
    /// More events match than were sent.
    pub(super) has_more: bool,
    /// Sequence of the newest message that this server had; known only for [`Which::NewestOfSubjects`].
    pub(super) up_to: Option<u64>,
}

/// The response to a request.
#[derive(Debug)]
pub(super) enum Answer {
    Page(Page),
    /// The connection was lost before the end of the response, perhaps because of an event in it.
    Lost,
    /// This stream does not offer pages, and why.
    NotOffered(String),
    /// This program's user may not read pages of this stream.
    NotPermitted(Violation),
}

/// Sends the request until there is a response; if the deadline passes before, returns why there is none.
pub(super) async fn ask(
    connection: &Connection,
    wanted: Wanted<'_>,
    deadline: Instant,
) -> Result<Answer, String> {
    let mut why = "NATS is not connected".to_owned();
    for attempt in 1.. {
        match timeout_at(deadline, ask_once(connection, wanted)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(broken)) => why = broken,
            Err(_) => break,
        }
        let next = Instant::now() + pause(attempt, rand::random());
        if next >= deadline {
            break;
        }
        sleep_until(next).await;
    }
    Err(why)
}

/// Sends the request once. The events that came in order before a response broke off are a page as well.
async fn ask_once(connection: &Connection, wanted: Wanted<'_>) -> Result<Answer, String> {
    let mut link = connection.link();
    let epoch =
        link.wait_for(|link| link.connected).await.map_err(|_| "the connection to NATS was lost")?.epoch;
    let mut violations = connection.violations();
    let (client, subject) = (connection.client(), connection.api_subjects().direct_get(wanted.stream));
    let (inbox, mut answers) = request(&client, &subject, wanted).await.map_err(|error| error.to_string())?;
    let concerns = |violation: &Violation| match violation {
        Violation::Publish(to) => *to == subject,
        Violation::Subscribe(to) => *to == inbox,
    };
    let mut events: Vec<StoredEvent> = Vec::new();
    loop {
        let broken = tokio::select! {
            biased;
            answer = timeout(REPLY_TIMEOUT, answers.next()) => match answer {
                Ok(Some(message)) => {
                    let before = events.last().map_or(0, |event| event.sequence);
                    match read(message, wanted.stream, before) {
                        Part::Event(event) => {
                            events.push(event);
                            continue;
                        }
                        Part::End { has_more, up_to } => {
                            return Ok(Answer::Page(Page { events, has_more, up_to }));
                        }
                        Part::NotOffered(why) => return Ok(Answer::NotOffered(why)),
                        Part::Broken(why) => why,
                    }
                }
                Ok(None) => return Ok(Answer::Lost),
                Err(_) => "no server responds".to_owned(),
            },
            _ = link.wait_for(|link| !link.connected || link.epoch != epoch) => return Ok(Answer::Lost),
            violation = violations.next_matching(concerns) => return Ok(Answer::NotPermitted(violation)),
        };
        if events.is_empty() {
            return Err(broken);
        }
        return Ok(Answer::Page(Page { events, has_more: true, up_to: None }));
    }
}

/// Sends the request. It has its own inbox, which ends with the subscriber.
async fn request(
    client: &Client,
    subject: &str,
    wanted: Wanted<'_>,
) -> Result<(String, async_nats::Subscriber), Box<dyn std::error::Error + Send + Sync>> {
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await?;
    let payload = body(wanted).to_string().into();
    client.publish_with_reply(subject.to_owned(), inbox.clone(), payload).await?;
    Ok((inbox, answers))
}

fn body(wanted: Wanted<'_>) -> Value {
    let Wanted { filter, which, .. } = wanted;
    match which {
        Which::From { sequence, shares } => {
            let [events, bytes] = [PAGE_EVENTS, PAGE_BYTES].map(|whole| (whole / shares.max(1)).max(1));
            json!({"seq": sequence, "next_by_subj": filter, "batch": events, "max_bytes": bytes})
        }
        Which::NewestOfSubjects(most) => {
            json!({"multi_last": [filter], "batch": most, "max_bytes": PAGE_BYTES})
        }
    }
}

/// One message of a response.
#[derive(Debug)]
enum Part {
    Event(StoredEvent),
    End {
        has_more: bool,
        up_to: Option<u64>,
    },
    /// No server gives pages of this stream, or not complete ones.
    NotOffered(String),
    /// A message is missing before this one.
    Broken(String),
}

/// Reads one message. `before` is the sequence of the previous event on this page, 0 for the first: every message names its
/// predecessor, so that a lost one is noticed.
fn read(message: Message, stream: &str, before: u64) -> Part {
    // A publisher can give an event a status too; only events have a sequence.
    let status = message.status.filter(|_| header(&message, "Nats-Sequence").is_none());
    match status {
        None => {}
        // 204 ends a page, and 404 is a page without events.
        Some(StatusCode::NOT_FOUND) => return Part::End { has_more: false, up_to: None },
        Some(status) if status.as_u16() == 204 => {
            return match header(&message, "Nats-Last-Sequence") {
                Some(last) if last.parse() == Ok(before) => Part::End {
                    has_more: header(&message, "Nats-Num-Pending").is_none_or(|pending| pending != "0"),
                    up_to: header(&message, "Nats-UpTo-Sequence").and_then(|up_to| up_to.parse().ok()),
                },
                last => Part::Broken(format!("the end of a page names {last:?} as its predecessor")),
            };
        }
        Some(status) => {
            let description = message.description.as_deref().unwrap_or_default();
            return Part::NotOffered(format!("{status} {description}"));
        }
    }
    match (header(&message, "Nats-Stream"), header(&message, "Nats-Last-Sequence")) {
        (Some(of), _) if of != stream => {
            // A mirror may keep less than what it mirrors.
            return Part::NotOffered(format!("its mirror {of} responds in its place"));
        }
        (_, Some(last)) if last.parse() == Ok(before) => {}
        (_, last) => return Part::Broken(format!("a message names {last:?} as its predecessor")),
    }
    let read = StreamMessage::try_from(message).map_err(|error| error.to_string());
    read.and_then(StoredEvent::from_message).map_or_else(Part::NotOffered, Part::Event)
}

/// The value that the server wrote into a header. It comes after what the publisher wrote under the same name.
fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    message.headers.as_ref()?.get_last(name).map(async_nats::HeaderValue::as_str)
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    fn message(status: Option<u16>, headers: &[(&'static str, &str)]) -> Message {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        Message {
            subject: "_INBOX.1".into(),
            reply: None,
            payload: "x".into(),
            headers: Some(map),
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            description: None,
            length: 1,
        }
    }

    fn event<'a>(sequence: &'a str, before: &'a str) -> [(&'static str, &'a str); 5] {
        [
            ("Nats-Stream", "numbers"),
            ("Nats-Subject", "numbers.a"),
            ("Nats-Sequence", sequence),
            ("Nats-Time-Stamp", "2026-11-21T09:00:00.000000001Z"),
            ("Nats-Last-Sequence", before),
        ]
    }

    #[test]
    fn an_event_is_read_with_what_the_server_says_of_it() {
        // The publisher wrote such headers too.
        let forged = [("Nats-Sequence", "9"), ("Nats-Stream", "letters"), ("Nats-Last-Sequence", "9")];
        let headers: Vec<_> = forged.into_iter().chain(event("7", "3")).collect();
        let Part::Event(read) = read(message(None, &headers), "numbers", 3) else { panic!("no event") };
        assert_eq!((read.subject.as_str(), read.sequence), ("numbers.a", 7));
        assert_eq!(read.time.to_string(), "2026-11-21T09:00:00.000000001Z");
    }

    #[test]
    fn a_lost_message_is_noticed_at_the_next_and_at_the_end() {
        assert!(matches!(read(message(None, &event("7", "3")), "numbers", 1), Part::Broken(_)));
        let end = message(Some(204), &[("Nats-Last-Sequence", "7")]);
        assert!(matches!(read(end.clone(), "numbers", 7), Part::End { has_more: true, up_to: None }));
        assert!(matches!(read(end, "numbers", 3), Part::Broken(_)));
    }

    #[test]
    fn what_a_mirror_or_nobody_answers_is_no_page() {
        assert!(matches!(read(message(None, &event("1", "0")), "orders", 0), Part::NotOffered(_)));
        for status in [503, 408, 412] {
            assert!(matches!(read(message(Some(status), &[]), "numbers", 0), Part::NotOffered(_)));
        }
        assert!(matches!(read(message(Some(404), &[]), "numbers", 0), Part::End { has_more: false, .. }));
    }

    #[test]
    fn an_end_says_how_far_the_server_was_and_whether_there_is_more() {
        let end = |pending| {
            let up_to = ("Nats-UpTo-Sequence", "9");
            read(
                message(Some(204), &[("Nats-Last-Sequence", "7"), ("Nats-Num-Pending", pending), up_to]),
                "numbers",
                7,
            )
        };
        assert!(matches!(end("0"), Part::End { has_more: false, up_to: Some(9) }));
        assert!(matches!(end("2"), Part::End { has_more: true, up_to: Some(9) }));
    }

    #[test]
    fn an_event_with_a_status_is_an_event() {
        for status in [204, 404, 503] {
            let read = read(message(Some(status), &event("7", "3")), "numbers", 3);
            assert!(matches!(read, Part::Event(StoredEvent { sequence: 7, .. })), "{status}: {read:?}");
        }
    }
}
