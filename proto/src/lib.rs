//! The events of the bundled services: the schemas in `events/` and the types made from them. Each type knows its full
//! protobuf name ([`prost::Name::full_name`]), which is the `Event-Type` header of what is published.

pub mod events {
    //! Schemas by package.

    #[allow(missing_docs, clippy::pedantic, reason = "what prost writes follows its own style")]
    pub mod v1 {
        //! The package `events.v1`, which only ever adds.

        include!(concat!(env!("OUT_DIR"), "/events.v1.rs"));

        impl FulfilmentStep {
            /// The step as it is named in metrics, spans and answers.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Unspecified => "unspecified",
                    Self::UserValidation => "user_validation",
                    Self::InventoryReservation => "inventory_reservation",
                    Self::PaymentAuthorization => "payment_authorization",
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::{Message, Name};

    use super::events::v1::{
        FulfilmentStep, OrderConfirmed, OrderLine, OrderPlaced, OrderRejected, OrderRejectedNotification,
        PaymentAuthorized, PaymentDeclined, PaymentVoided, UserCreated,
    };

    /// A registered user as it lies in streams for ever: `user_id` = 1, `email` = 2, `created_at` = 3 (varint).
    const STORED_USER_CREATED: &[u8] = b"\x0a\x03u-1\x12\x0aann@x.test\x18\x80\xc8\x8c\x90\x9a\x32";

    fn user_created() -> UserCreated {
        UserCreated { user_id: "u-1".into(), email: "ann@x.test".into(), created_at: 1_725_000_000_512 }
    }

    fn survives<M: Message + Default + PartialEq + std::fmt::Debug>(event: &M) {
        assert_eq!(M::decode(event.encode_to_vec().as_slice()).unwrap(), *event);
    }

    #[test]
    fn a_stored_user_is_still_read_and_written_byte_for_byte() {
        assert_eq!(UserCreated::decode(STORED_USER_CREATED).unwrap(), user_created());
        assert_eq!(user_created().encode_to_vec(), STORED_USER_CREATED);
    }

    #[test]
    fn an_event_of_a_later_program_is_read_by_what_is_known_of_it() {
        let mut later = STORED_USER_CREATED.to_vec();
        later.extend(b"\x22\x03new");
        assert_eq!(UserCreated::decode(later.as_slice()).unwrap(), user_created());
        let step_of_a_later_program = OrderRejected { step: 9, ..OrderRejected::default() };
        assert_eq!(step_of_a_later_program.step(), FulfilmentStep::Unspecified);
    }

    #[test]
    fn what_is_no_event_does_not_decode() {
        for bytes in [&b"not protobuf"[..], &STORED_USER_CREATED[..7], b"\x08\x01"] {
            assert!(UserCreated::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_event_type_is_the_full_protobuf_name() {
        assert_eq!(UserCreated::full_name(), "events.v1.UserCreated");
        assert_eq!(OrderPlaced::full_name(), "events.v1.OrderPlaced");
        assert_eq!(PaymentVoided::full_name(), "events.v1.PaymentVoided");
        assert_eq!(OrderRejectedNotification::full_name(), "events.v1.OrderRejectedNotification");
    }

    #[test]
    fn every_event_survives_the_wire() {
        let (order_id, user_id) = (String::from("o-1"), String::from("u-1"));
        let (amount, currency, reason) = (2599, String::from("EUR"), String::from("no stock of A-1"));
        let (authorization_id, at) = (String::from("auth-1"), 1_725_000_000_512);
        let step = FulfilmentStep::InventoryReservation.into();
        survives(&OrderPlaced {
            order_id: order_id.clone(),
            user_id: user_id.clone(),
            lines: vec![OrderLine { sku: "A-1".into(), quantity: 1, unit_price: amount }],
            amount,
            currency: currency.clone(),
            placed_at: at,
        });
        survives(&OrderConfirmed {
            order_id: order_id.clone(),
            authorization_id: authorization_id.clone(),
            confirmed_at: at,
        });
        survives(&OrderRejected {
            order_id: order_id.clone(),
            step,
            reason: reason.clone(),
            rejected_at: at,
        });
        survives(&PaymentAuthorized {
            order_id: order_id.clone(),
            authorization_id: authorization_id.clone(),
            amount,
            currency: currency.clone(),
            authorized_at: at,
        });
        survives(&PaymentDeclined {
            order_id: order_id.clone(),
            amount,
            currency,
            reason: reason.clone(),
            declined_at: at,
        });
        survives(&PaymentVoided {
            order_id: order_id.clone(),
            authorization_id,
            reason: reason.clone(),
            voided_at: at,
        });
        survives(&OrderRejectedNotification { user_id, order_id, step, reason, rejected_at: at });
    }

    #[test]
    fn steps_are_named_as_in_metrics() {
        let named = [
            (FulfilmentStep::UserValidation, "user_validation"),
            (FulfilmentStep::InventoryReservation, "inventory_reservation"),
            (FulfilmentStep::PaymentAuthorization, "payment_authorization"),
        ];
        assert!(named.iter().all(|(step, name)| step.name() == *name));
    }
}
