//! Makes the Rust types from the event schemas, without a protoc on the machine.

use std::error::Error;

const SCHEMAS: [&str; 4] = [
    "events/v1/notifications.proto",
    "events/v1/orders.proto",
    "events/v1/payments.proto",
    "events/v1/users.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=events");
    let descriptors = protox::compile(SCHEMAS, ["."])?;
    prost_build::Config::new().enable_type_names().compile_fds(descriptors)?;
    Ok(())
}
