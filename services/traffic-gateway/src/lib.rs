//! One public URL in front of every worker's console.
