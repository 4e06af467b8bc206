"""Work of opd: storage, stages, engines and the learner."""
