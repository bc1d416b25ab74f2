//! The service's settings, from a file (`ORDERS_CONFIG_FILE`) and the environment over it.

use std::{net::SocketAddr, time::Duration};

use jetwright_process::{
    admin,
    configuration::{self, Problems, Reader},
};

use crate::catalogue::Catalogue;

const PREFIX: &str = "ORDERS";

/// All settings.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `http.address` (`ORDERS_HTTP_ADDRESS`): where orders are placed (default `0.0.0.0:8080`).
    pub http_address: SocketAddr,
    /// Where the probes and metrics are (`JETWRIGHT_ADMIN_ADDRESS`).
    pub admin_address: SocketAddr,
    /// What the shop sells, and how it is paid.
    pub shop: Shop,
}

/// What the shop sells, and how it is paid.
#[derive(Clone, Debug)]
pub struct Shop {
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
        let own = Reader::open(configuration::file(PREFIX).as_deref(), PREFIX).and_then(own);
        let ((http_address, shop), admin_address) = Problems::both(own, admin::address())?;
        Ok(Self { http_address, admin_address, shop })
    }
}

fn own(mut reader: Reader) -> Result<(SocketAddr, Shop), Problems> {
    let http_address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
    let catalogue = reader.value("catalogue", Catalogue::default());
    let currency = reader.value("currency", "EUR".to_owned());
    if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
        reader.refuse("currency", format_args!("found {currency:?}"), "expected an ISO 4217 code, as in EUR");
    }
    let payments_url = reader.required::<reqwest::Url>("payments.url");
    if let Ok(url) = &payments_url
        && url.scheme() != "http"
    {
        reader.refuse("payments.url", format_args!("found {url}"), "expected an http:// address");
    }
    let milliseconds = reader.value("payments.timeoutMilliseconds", 5000);
    if !(1..=20_000).contains(&milliseconds) {
        let expected = "expected 1 to 20000, less than what one attempt may take";
        reader.refuse("payments.timeoutMilliseconds", format_args!("found {milliseconds}"), expected);
    }
    reader.finish()?;
    let payments_timeout = Duration::from_millis(milliseconds);
    Ok((http_address, Shop { catalogue, currency, payments_url: payments_url?, payments_timeout }))
}
