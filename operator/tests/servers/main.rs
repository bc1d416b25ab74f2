//! The operator as a program, against a real nats-server and a real API server.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adoption;
mod capture;
mod consumers;
mod costs;
mod credentials;
mod data_loss;
mod dead_ends;
mod dead_letters;
mod deletion;
mod division;
mod events;
mod fake_jetstream;
mod leader;
mod metrics;
mod monitoring;
mod ordered;
mod outages;
mod ownership;
mod partitions;
mod program;
mod repartition;
mod replicas;
mod rivals;
mod scaling;
mod sequences;
mod server_limits;
mod streams;
mod tracing;
mod trouble;
mod unreadable;
mod upgrade;
mod verify;
mod work_queues;
mod workloads;
mod world;
