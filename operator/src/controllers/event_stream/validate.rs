//! In: an EventStream, and which reserved subjects it may have. Out: the stream that it declares, whole, or everything that is wrong with it. Pure.
//!
//! What the API server refuses by the schema is not judged again here.

use std::time;

use jetwright_crds::{Duration, EventStream, stream::Limits};

use super::reserved::{self, Grants};
use crate::{
    field_error::FieldError,
    jetstream::{
        asset::{Desired, Stream},
        ownership::Owner,
        partitions, stream_config,
    },
};

/// Shortest age and duplicate window that JetStream takes (checkStreamCfg in server/stream.go of nats-server).
const MIN_AGE: time::Duration = time::Duration::from_millis(100);

/// Makes the desired stream of an object.
///
/// # Errors
///
/// Everything that is wrong, each with its field and what to do.
pub fn validate(
    object: &EventStream,
    owner: Owner,
    grants: &Grants,
) -> Result<Desired<Stream>, Vec<FieldError>> {
    let (name, spec) = (object.stream_name(), &object.spec);
    let mut errors = spec.limits.as_ref().map(limit_errors).unwrap_or_default();
    errors.extend(reserved::errors(&name, spec, grants));
    errors.extend(
        partitions::declared(spec).err().map(|error| FieldError::new("spec.partitions", error.to_string())),
    );
    errors.extend(spec.duplicate_window.and_then(|window| window_error(window, spec.effective_max_age())));
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Desired {
        config: stream_config::config(&name, spec),
        key: name,
        owner,
        adoption: spec.effective_adoption_policy(),
        replicas: Some(spec.effective_replicas()),
        max_ack_pending: None,
    })
}

fn limit_errors(limits: &Limits) -> Vec<FieldError> {
    let Limits { max_age, max_bytes, max_messages: _, max_messages_per_subject: _, max_message_size } =
        limits;
    let mut errors = Vec::new();
    errors.extend(FieldError::too_long("spec.limits.maxAge", *max_age));
    errors.extend(FieldError::too_large("spec.limits.maxBytes", *max_bytes));
    if let Some(age) = max_age
        && age.0 < MIN_AGE
    {
        errors.push(FieldError::new(
            "spec.limits.maxAge",
            format!("{age} is less than 100ms; leave it out to keep messages for ever"),
        ));
    }
    if max_bytes.is_some_and(|bytes| bytes.0 == 0) {
        errors
            .push(FieldError::new("spec.limits.maxBytes", "0 would hold nothing; leave it out for no limit"));
    }
    match max_message_size {
        Some(size) if size.0 == 0 => {
            errors.push(FieldError::new(
                "spec.limits.maxMessageSize",
                "0 would take nothing; leave it out for no limit",
            ));
        }
        Some(size) if i32::try_from(size.0).is_err() => {
            errors.push(FieldError::new(
                "spec.limits.maxMessageSize",
                format!("{size} is more than 2Gi - 1, JetStream's own limit"),
            ));
        }
        _ => {}
    }
    errors
}

fn window_error(window: Duration, max_age: Option<Duration>) -> Option<FieldError> {
    let field = "spec.duplicateWindow";
    if window.0 < MIN_AGE {
        return Some(FieldError::new(
            field,
            format!("{window} is less than 100ms, the shortest that JetStream takes"),
        ));
    }
    if let Some(error) = FieldError::too_long(field, Some(window)) {
        return Some(error);
    }
    let age = max_age.filter(|age| window > *age)?;
    Some(FieldError::new(
        field,
        format!("{window} is longer than messages are kept ({age}): shorten it, or raise spec.limits.maxAge"),
    ))
}

#[cfg(test)]
mod tests {
    use jetwright_crds::{AdoptionPolicy, stream::Replicas};

    use super::*;
    use crate::jetstream::ownership::tests::owner;

    fn validated(spec: &str) -> Result<Desired<Stream>, Vec<FieldError>> {
        let object = EventStream::new("orders", serde_saphyr::from_str(spec).unwrap());
        validate(&object, owner(1), &Grants::default())
    }

    fn fields(spec: &str) -> Vec<&'static str> {
        validated(spec).unwrap_err().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_stream_is_desired_whole_and_owned() {
        let spec = "{subjects: [orders.>], profile: Critical}";
        let expected = Desired {
            key: "orders".to_owned(),
            owner: owner(1),
            adoption: AdoptionPolicy::Refuse,
            config: stream_config::config("orders", &serde_saphyr::from_str(spec).unwrap()),
            replicas: Some(Replicas::Prefer(3)),
            max_ack_pending: None,
        };
        assert_eq!(validated(spec), Ok(expected));
    }

    #[test]
    fn a_window_that_outlasts_the_messages_is_refused_only_where_it_is_set() {
        validated("{subjects: [a], limits: {maxAge: 30s}}").unwrap();
        assert_eq!(
            fields("{subjects: [a], limits: {maxAge: 30s}, duplicateWindow: 1m}"),
            ["spec.duplicateWindow"]
        );
    }

    #[test]
    fn what_jetstream_cannot_hold_is_named_with_its_bound() {
        let spec = "{subjects: [a], limits: {maxAge: 300y, maxBytes: '99999999999999999999'}, duplicateWindow: 299y}";
        let errors: Vec<_> = validated(spec).unwrap_err().into_iter().map(|error| error.message).collect();
        assert!(errors[0].starts_with("300y must be at most 292 years"), "{errors:?}");
        assert!(errors[1].contains("less than 2^63 bytes") && errors[2].starts_with("299y"), "{errors:?}");
    }

    #[test]
    fn every_error_is_named_at_once() {
        let spec = "{subjects: [$SRV.a], limits: {maxAge: 10ms, maxBytes: 0, maxMessageSize: 2Gi}, duplicateWindow: 1ms}";
        let all = [
            "spec.limits.maxAge",
            "spec.limits.maxBytes",
            "spec.limits.maxMessageSize",
            "spec.subjects",
            "spec.duplicateWindow",
        ];
        assert_eq!(fields(spec), all);
    }
}
