//! The articles: their prices, and their initial stock. Pure.

use std::{collections::BTreeMap, str::FromStr};

/// All articles by their stock keeping units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue(BTreeMap<String, Article>);

/// One article.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Article {
    /// What one piece costs, in minor units of the shop's currency.
    pub unit_price: i64,
    /// Pieces in stock when the shop opens; later the stock is what the orders left.
    pub initial_stock: u64,
}

impl Catalogue {
    /// The article of this name, if there is one.
    #[must_use]
    pub fn get(&self, sku: &str) -> Option<Article> {
        self.0.get(sku).copied()
    }

    /// All articles.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Article)> {
        self.0.iter().map(|(sku, article)| (sku.as_str(), *article))
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        let articles = [("mug", 1250, 10_000), ("notebook", 799, 10_000), ("poster", 1999, 100)];
        Self(
            articles
                .into_iter()
                .map(|(sku, unit_price, initial_stock)| {
                    (sku.to_owned(), Article { unit_price, initial_stock })
                })
                .collect(),
        )
    }
}

/// Reads `mug=1250:10000, notebook=799:500`: name, price in minor units, and initial stock of each article.
impl FromStr for Catalogue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut articles = BTreeMap::new();
        for entry in text.split(',').map(str::trim) {
            let (sku, article) = article(entry)
                .ok_or_else(|| format!("{entry:?} must be sku=price:stock, as in mug=1250:100"))?;
            if articles.insert(sku.to_owned(), article).is_some() {
                return Err(format!("{sku:?} must not be there twice"));
            }
        }
        Ok(Self(articles))
    }
}

fn article(entry: &str) -> Option<(&str, Article)> {
    let (sku, figures) = entry.split_once('=')?;
    let (price, stock) = figures.split_once(':')?;
    // Names are keys of the bucket, which NATS restricts.
    let named = !sku.is_empty()
        && sku.len() <= 64
        && sku.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let article =
        Article { unit_price: price.trim().parse().ok()?, initial_stock: stock.trim().parse().ok()? };
    (named && article.unit_price > 0).then_some((sku, article))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_is_read_from_text() {
        let catalogue: Catalogue = "mug=1250:10, pin=99:0".parse().unwrap();
        assert_eq!(catalogue.get("mug"), Some(Article { unit_price: 1250, initial_stock: 10 }));
        assert_eq!(catalogue.iter().map(|(sku, _)| sku).collect::<Vec<_>>(), ["mug", "pin"]);
    }

    #[test]
    fn what_is_no_catalogue_is_refused_with_its_place() {
        for wrong in ["", "mug", "mug=1", "mug=0:1", "mug=-1:1", "a.b=1:1", "mug=1:1,"] {
            assert!(wrong.parse::<Catalogue>().unwrap_err().contains("sku=price:stock"), "{wrong}");
        }
        assert!("mug=1:1,mug=2:2".parse::<Catalogue>().unwrap_err().contains("twice"));
    }
}
