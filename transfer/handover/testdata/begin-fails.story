# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
- enter-running
- begin
Begin fails: out of luck
- enter-resumed
- resume
Resume
- send-abort
> abort
- finish

*handover.FailedError: migrate: build: out of luck
the service is running on this host as before
the copy: runs

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
- send-ready
> ready
- enter-agreed

*handover.FailedError: migrate: preflight: the source gave up: build: out of luck
the copy: none
