//! An account whose users have JWTs, as nats-server's operator mode has them.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator (of nats-server), its system account, and one account with JetStream.
pub struct JwtAccount {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl Default for JwtAccount {
    fn default() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }
}

impl JwtAccount {
    /// What a server's configuration needs to know its users.
    #[must_use]
    pub fn config(&self) -> String {
        let operator = sign(&self.operator, &self.operator, &json!({"type": "operator", "version": 2}));
        let account = |key: &KeyPair, jetstream: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream,
            });
            sign(&self.operator, key, &json!({"type": "account", "version": 2, "limits": limits}))
        };
        let (system, name) = (self.system.public_key(), self.account.public_key());
        format!(
            "operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload: {{ {system}: {}, {name}: {} }}\n",
            account(&self.system, 0),
            account(&self.account, -1),
        )
    }

    /// The file `user.creds` of a new user who may publish and subscribe to these subjects alone.
    #[must_use]
    pub fn user(&self, publish: &[&str], subscribe: &[&str]) -> String {
        let user = KeyPair::new_user();
        let claims = json!({
            "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
            "pub": {"allow": publish}, "sub": {"allow": subscribe},
        });
        let jwt = sign(&self.account, &user, &claims);
        let seed = user.seed().unwrap_or_else(|error| panic!("a new key has a seed: {error}"));
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

/// A JWT (github.com/nats-io/jwt, version 2) in which the issuer says this of the subject.
fn sign(issuer: &KeyPair, subject: &KeyPair, claims: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (issuer_name, name) = (issuer.public_key(), subject.public_key());
    let payload =
        json!({"jti": name, "iat": now, "iss": issuer_name, "name": name, "sub": name, "nats": claims});
    let part = |part: &Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
    let text = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&payload));
    let signature = issuer.sign(text.as_bytes()).unwrap_or_else(|error| panic!("a new key signs: {error}"));
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}
