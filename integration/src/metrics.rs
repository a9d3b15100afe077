//! Reading metrics (the Prometheus text format).

/// The sum of every sample whose name and labels contain all of `parts`.
pub fn sum(text: &str, parts: &[&str]) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(name, _)| parts.iter().all(|part| name.contains(part)))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// The same of counters, which are whole numbers.
pub fn count(text: &str, parts: &[&str]) -> u64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(name, _)| parts.iter().all(|part| name.contains(part)))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_chosen_by_name_and_label() {
        let text = "# HELP a b\na_total{node=\"x\"} 3\na_total{node=\"y\"} 4\nb 9\n# EOF\n";
        assert!((sum(text, &["a_total"]) - 7.0).abs() < 0.1);
        assert!((sum(text, &["a_total", "\"y\""]) - 4.0).abs() < 0.1);
        assert_eq!(count(text, &["a_total"]), 7);
    }
}
