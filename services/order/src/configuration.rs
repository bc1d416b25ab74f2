//! The service's settings, from a file (`ORDERS_CONFIG_FILE`) and the environment over it.

use std::{net::SocketAddr, time::Duration};

use jetwright_process::configuration::{self, Problem, Problems, Reader};

use crate::catalogue::Catalogue;

const PREFIX: &str = "ORDERS";

/// All settings.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `http.address` (`ORDERS_HTTP_ADDRESS`): where orders are placed (default `0.0.0.0:8080`).
    pub http_address: SocketAddr,
    /// What the shop sells, and how it is paid.
    pub shop: ShopConfig,
}

/// What the shop sells, and how it is paid.
#[derive(Clone, Debug)]
pub struct ShopConfig {
    /// `catalogue` (`ORDERS_CATALOGUE`): `sku=price:stock, …`, prices in minor units of the currency.
    pub catalogue: Catalogue,
    /// `currency` (`ORDERS_CURRENCY`): an ISO 4217 code (default `EUR`).
    pub currency: String,
    /// `payments.url` (`ORDERS_PAYMENTS_URL`): where the payment gateway is.
    pub payments_url: reqwest::Url,
    /// `payments.timeoutMilliseconds` (`ORDERS_PAYMENTS_TIMEOUT_MILLISECONDS`): how long the gateway may take to answer
    /// (default 5,000).
    pub payments_timeout: Duration,
}

impl Configuration {
    /// Reads all settings.
    ///
    /// # Errors
    ///
    /// Every mistake.
    pub fn read() -> Result<Self, Problems> {
        Reader::open(configuration::file(PREFIX).as_deref(), PREFIX).and_then(read)
    }
}

fn read(mut reader: Reader) -> Result<Configuration, Problems> {
    let http_address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
    let catalogue = reader.value("catalogue", Catalogue::default());
    let currency = reader.value("currency", "EUR".to_owned());
    if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
        reader.refuse("currency", format_args!("found {currency:?}"), "expected an ISO 4217 code, as in EUR");
    }
    let payments_url = payments_url(reader.optional::<String>("payments.url").as_deref());
    let milliseconds = reader.value("payments.timeoutMilliseconds", 5000);
    if !(1..=20_000).contains(&milliseconds) {
        let expected = "expected 1 to 20000, less than what one attempt may take";
        reader.refuse("payments.timeoutMilliseconds", format_args!("found {milliseconds}"), expected);
    }
    let ((), payments_url) = Problems::zip(reader.finish(), payments_url)?;
    let payments_timeout = Duration::from_millis(milliseconds);
    let shop = ShopConfig { catalogue, currency, payments_url, payments_timeout };
    Ok(Configuration { http_address, shop })
}

/// The gateway's address. It may contain a password, so the error of a wrong one shows only what is wrong with it.
fn payments_url(text: Option<&str>) -> Result<reqwest::Url, Problems> {
    let found = match text.map(reqwest::Url::parse) {
        Some(Ok(url)) if url.scheme() == "http" => return Ok(url),
        Some(Ok(_)) => "found an address of another kind".to_owned(),
        Some(Err(error)) => format!("found no address: {error}"),
        None => "missing".to_owned(),
    };
    let (path, variable) = ("payments.url".to_owned(), Some(format!("{PREFIX}_PAYMENTS_URL")));
    let expected = "expected an http:// address, as in http://payments:8080".to_owned();
    Err(Problem { path, variable, found, expected }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_of_the_gateway_is_an_error_without_its_password() {
        for wrong in ["https://shop:s3cret@pay.test", "shop:s3cret@pay.test", "http://shop:s3cret@pay:test"] {
            let message = payments_url(Some(wrong)).unwrap_err().to_string();
            assert!(message.starts_with("payments.url (ORDERS_PAYMENTS_URL): found "), "{message}");
            assert!(!message.contains("s3cret"), "{message}");
        }
        assert!(payments_url(None).unwrap_err().to_string().contains("missing"));
        assert!(payments_url(Some("http://shop:s3cret@pay.test")).is_ok());
    }
}
