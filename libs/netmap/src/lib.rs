//! Sans-IO control-plane core: who exists, who sees whom, who must be told what.
