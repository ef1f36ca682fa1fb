# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
- enter-running
- begin
Begin
- send-build
> build
- enter-resumed
- resume
Resume
- send-abort
- finish

*handover.FailedError: migrate: build: the destination gave up: build: out of luck
the service is running on this host as before
the copy: runs

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
- send-ready
> ready
- enter-agreed
- enter-building
- begin
Begin
- build
Build fails: out of luck
- enter-aborted
- send-abort
> abort
- undo
Undo
- finish

*handover.FailedError: migrate: build: out of luck
nothing is left of it on this host
the copy: none
