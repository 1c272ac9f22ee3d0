//! The book against the kernel: row by row, without a copy of either.

use super::{Book, Keys, Rows, book::Verdict};
use crate::{
    desired::Table,
    kernel::{Kernel, KernelError},
    reconcile::Reconciler,
};

/// Referenced before referrer.
const TABLES: [Table; 6] = [
    Table::Backends,
    Table::ServiceSlots,
    Table::ServiceMembers,
    Table::ServiceRanges,
    Table::Maglev,
    Table::Services,
];

/// What the kernel lacks, and what it has too much of.
#[derive(Debug, Default)]
pub struct Findings {
    pub missing: Rows,
    pub superfluous: Keys,
}

/// What maps lack that have no row.
pub fn everything(book: &Book) -> Findings {
    let view = book.view();
    let mut findings = Findings::default();
    for table in TABLES {
        findings.missing.append(view.rows(table));
    }
    findings
}

/// Compares. A table that lacks a row is written as a whole: that costs less than to remember which ones were seen.
pub async fn compare<K: Kernel>(
    book: &Book,
    reconciler: &mut Reconciler<K>,
) -> Result<Findings, KernelError> {
    let view = book.view();
    let mut findings = Findings::default();
    for table in TABLES {
        let mut found = 0;
        let mut stale = Rows::default();
        let keys = &mut findings.superfluous;
        let mut each = |key: &[u8], value: &[u8]| match view.judge(table, key, value) {
            Verdict::Right => found += 1,
            Verdict::Stale(wanted) => {
                found += 1;
                stale.push(table, key, &wanted);
            }
            Verdict::Superfluous => keys.push(table, key),
        };
        reconciler.scan(table, &mut each).await?;
        let whole = found < view.expected(table);
        findings
            .missing
            .append(if whole { view.rows(table) } else { stale });
    }
    Ok(findings)
}
