//! Addresses of NATS servers. In: a text of the configuration. Out: the addresses, or what is wrong with one. Pure.

use async_nats::ServerAddr;

/// Why an address cannot be used. It never shows the address, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Or empty.
    #[error("an address has no host")]
    NoHost,
    /// The client would not use it (async-nats 0.51), and credentials belong neither in flags nor in the environment.
    #[error("an address has a user, password or token")]
    HasUser,
    /// With the reason.
    #[error("an address is invalid: {0}")]
    Invalid(String),
}

/// Reads comma-separated addresses, such as `nats://one:4222, tls://two`.
pub fn parse_addresses(text: &str) -> impl Iterator<Item = Result<ServerAddr, AddressError>> {
    text.split(',').map(str::trim).map(parse_address)
}

fn parse_address(text: &str) -> Result<ServerAddr, AddressError> {
    match text.parse::<ServerAddr>() {
        Ok(server) if server.username().or(server.password()).is_some() => Err(AddressError::HasUser),
        Ok(server) if text.is_empty() || server.host().is_empty() => Err(AddressError::NoHost),
        Ok(server) => Ok(server),
        Err(error) => Err(AddressError::Invalid(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Result<String, AddressError>> {
        parse_addresses(text).map(|server| server.map(|server| server.host().to_owned())).collect()
    }

    #[test]
    fn users_and_tokens_in_addresses_are_refused_and_not_repeated() {
        for text in ["nats://op:hunter2@a:4222", "tls://hunter2@[::1]:4222", "nats://:hunter2@a"] {
            assert_eq!(parse(text), [Err(AddressError::HasUser)], "{text}");
        }
        assert!(!AddressError::HasUser.to_string().contains("hunter2"));
        assert_eq!(parse("nats://a:4222, tls://b"), [Ok("a".to_owned()), Ok("b".to_owned())]);
    }

    #[test]
    fn addresses_that_lead_nowhere_are_refused() {
        assert_eq!(parse("nats://a,,b")[1], Err(AddressError::NoHost));
        assert_eq!(parse("nats://"), [Err(AddressError::NoHost)]);
        for text in ["ftp://a", "a:99999"] {
            assert!(matches!(parse(text)[..], [Err(AddressError::Invalid(_))]), "{text}");
        }
    }
}
