//! As much of the shell's grammar as documents use.

/// The simple commands of a line, each as its words: without comments, operators, redirections and
/// quotes; what stands in `$(…)` and `<(…)` is a command too.
pub fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut done = Vec::new();
    // Commands that a substitution interrupts.
    let mut open: Vec<Command> = Vec::new();
    let mut command = Command::default();
    let chars: Vec<char> = line.chars().collect();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        let blank = |c: Option<char>| c.is_none_or(char::is_whitespace);
        let before = at.checked_sub(1).and_then(|at| chars.get(at).copied());
        at += 1;
        match c {
            '#' if blank(before) => break,
            '\'' | '"' => {
                let end = chars[at..].iter().position(|&other| other == c);
                let end = end.map_or(chars.len(), |length| at + length);
                command.push_str(&chars[at..end]);
                at = end + 1;
            }
            '\\' => {
                command.push_str(next.as_slice());
                at += 1;
            }
            c if c.is_whitespace() => command.end_word(),
            '$' | '<' if next == Some('(') => {
                at += 1;
                // Whatever it yields is one word, or a part of one.
                command.push_str(&['_']);
                open.push(std::mem::take(&mut command));
            }
            ')' if !open.is_empty() => {
                done.extend(command.end());
                command = open.pop().unwrap_or_default();
            }
            '&' | ';' => {
                done.extend(command.end());
                command = Command::default();
            }
            // Between words without blanks it tells alternatives apart: always-on|on-demand.
            '|' if blank(before) || blank(next) => {
                done.extend(command.end());
                command = Command::default();
            }
            '>' | '<' if blank(before) || next == Some(c) || before == Some(c) => {
                command.end_word();
                command.drop_next = true;
            }
            c => command.push_str(&[c]),
        }
    }
    done.extend(command.end());
    done.extend(open.into_iter().rev().filter_map(Command::end));
    done
}

#[derive(Default)]
struct Command {
    words: Vec<String>,
    word: Option<String>,
    /// The next word is where a redirection leads.
    drop_next: bool,
}

impl Command {
    fn push_str(&mut self, chars: &[char]) {
        self.word.get_or_insert_default().extend(chars);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        if !std::mem::take(&mut self.drop_next) {
            self.words.push(word);
        }
    }

    fn end(mut self) -> Option<Vec<String>> {
        self.end_word();
        (!self.words.is_empty()).then_some(self.words)
    }
}
