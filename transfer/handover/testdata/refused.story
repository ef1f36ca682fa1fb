# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
> abort

*checkpoint.RefusedError: migrate refused, nothing was changed:
process sshd (7): it is traced by gdb
  hint: detach gdb
on the destination: address 10.0.0.7: it answers here
  hint: remove it
on the destination: pid 7: it is taken
  hint: --pidns new
the copy: runs

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
> problems

*checkpoint.RefusedError: migrate refused, nothing was changed:
address 10.0.0.7: it answers here
  hint: remove it
pid 7: it is taken
  hint: --pidns new
the copy: none
