//! The table that the bench prints.

/// One line: what was done, what is to be reached, what came out.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The work.
    pub(crate) work: String,
    /// What is to be reached.
    pub(crate) target: String,
    /// What came out.
    pub(crate) value: String,
    /// What something else needs for the same.
    pub(crate) beside: String,
    /// Whether it was reached.
    pub(crate) reached: bool,
}

/// The rows so far; each is printed when it is there.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds and prints a row.
    pub(crate) fn row(&mut self, work: &str, target: &str, value: String, beside: &str, reached: bool) {
        let row = Row { work: work.to_owned(), target: target.to_owned(), value, beside: beside.to_owned(), reached };
        if self.0.is_empty() {
            line("work", "to reach", "Twill", "beside", "");
        }
        print(&row);
        self.0.push(row);
    }

    /// Something to know about the row before.
    pub(crate) fn note(&self, text: &str) {
        println!("    {text}");
    }

    /// Prints all rows together; whether all were reached.
    pub(crate) fn finish(&self) -> bool {
        println!();
        line("work", "to reach", "Twill", "beside", "");
        self.0.iter().for_each(print);
        self.0.iter().all(|row| row.reached)
    }
}

fn print(row: &Row) {
    line(&row.work, &row.target, &row.value, &row.beside, if row.reached { "ok" } else { "MISS" });
}

fn line(work: &str, target: &str, value: &str, beside: &str, verdict: &str) {
    println!("{work:<44} {target:<24} {value:<26} {beside:<30} {verdict}");
}
